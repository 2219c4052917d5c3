"""Fuzzing of frames, masks, proposals, states, weights and exports: a damaged file gives a typed
error or a correct result, in bounded time and memory.

    python tests/support/fuzz_files.py --count 10000 [--first 0]     # what `make fuzz` runs
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import make_video, noise
from conftest import tiny_config
from PIL import Image
from quick_streams import QUICK, SIZE, begin, rectangle

from vosengine.detectors.file import FileSource, write_proposals
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import VosError
from vosengine.onnx.manifest import Graph, Manifest, hash_of
from vosengine.proposals import Proposals, boxes_of, check_proposals
from vosengine.video import open_source, read_mask, write_labels
from vosengine.zoo.checkpoints import read_state_dict
from vosengine.zoo.registry import build
from vosengine.zoo.weights import load_file, save, state_of

SECONDS = 5.0
BYTES = 1 << 30
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 10**9, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "x", "\u0000", "1", "nan", [], [[]], {}, {"size": 1}, [None], [1, "a"]),
)


# Damage


def damaged(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """Damage a file: flip bits, truncate, insert, remove or zero bytes, or replace it."""
    kind = draw.choice(("flip", "flip", "flip", "cut", "insert", "delete", "zero", "other"))
    spoilt = bytearray(data)
    place = draw.randrange(max(1, len(spoilt)))
    if draw.random() < 0.5:  # damage to headers has the most effect
        place = draw.randrange(min(128, max(1, len(spoilt))))
    length = draw.choice((1, 2, 4, 8, 64, 1000))
    if kind == "flip":
        for _ in range(draw.choice((1, 1, 2, 8))):
            near = min(len(spoilt) - 1, place + draw.randrange(64))
            spoilt[near] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del spoilt[draw.choice((place, draw.randrange(len(spoilt)))) :]
    elif kind == "insert":
        spoilt[place:place] = draw.randbytes(length)
    elif kind == "delete":
        del spoilt[place : place + length]
    elif kind == "zero":
        spoilt[place : place + length] = bytes(len(spoilt[place : place + length]))
    else:
        return draw.choice(others)
    return bytes(spoilt)


def odd_json(text: str, draw: random.Random) -> str:
    """Remove a value of a JSON document, or replace it by one of another type."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(content)
    node, key = draw.choice(places)
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice(ODD)
    return json.dumps(content)


# Targets


@dataclass(frozen=True)
class Target:
    """Kind of input: valid files, and a reader that raises a VosError or returns whether the result
    is correct."""

    name: str
    files: tuple[Path, ...]
    read: Callable[[Path], bool]


def _frames(path: Path) -> bool:
    with open_source(str(path)) as source:
        images = [frame.image for frame in source]
    return bool(images) and all(x.dtype == np.uint8 and x.shape[2:] == (3,) for x in images)


def _mask(path: Path) -> bool:
    mask = read_mask(path)
    return mask.dtype == np.uint8 and mask.ndim == 2


def _proposals(path: Path) -> bool:
    frame = np.zeros((*SIZE, 3), np.uint8)
    for boxes in (False, True):
        source = FileSource(path, boxes_as_masks=boxes)
        for index in range(3):
            check_proposals(source(frame, index), SIZE)
    return True


class Kept:
    """Saved streams, and their next results."""

    def __init__(self, folder: Path) -> None:
        self.engines: dict[str, Segmenter] = {}
        self.wanted: dict[str, np.ndarray] = {}
        self.frame = noise(1, *SIZE)[0]
        for model in ("stm", "giel", "dmn_aoa", "target_aware"):
            engine = begin(model)
            for _ in range(2):
                engine.step(self.frame, rectangle(8, 8, 20, 24) if not engine.frame_count else None)
            engine.save_state(folder / f"{model}.state")
            self.engines[model] = engine
            self.wanted[model] = self._next(model)

    def _next(self, model: str) -> np.ndarray:
        result = self.engines[model].step(self.frame)
        assert result is not None
        return result.numpy()

    def read(self, path: Path) -> bool:
        engine = self.engines[path.stem]
        before = engine.frame_count
        try:
            engine.load_state(path)
        except VosError:
            assert engine.frame_count == before
            raise
        return np.array_equal(self._next(path.stem), self.wanted[path.stem])

    def step(self, path: Path) -> bool:
        """Step with odd frames and masks, drawn from a damaged file: an error leaves the stream
        unchanged, and a result has the ids of the prompts."""
        draw = random.Random(path.read_bytes())
        engine = self.engines[draw.choice(("stm", "target_aware"))]
        engine.reset()
        frame: Any = noise(1, 40, 48)[0]
        mask: Any = rectangle(4, 4, 20, 24)[:40, :48]
        odd = draw.choice(("frame", "mask", "both"))
        frame = frame if odd == "mask" else odd_array(draw)
        mask = mask if odd == "frame" else odd_array(draw) if draw.random() < 0.9 else None
        try:
            result = engine.step(frame, mask)
        except VosError:
            assert engine.frame_count == 0
            assert engine.geometry is None
            raise
        labels = np.zeros(1) if mask is None else np.asarray(mask)
        if labels.ndim == 3:
            labels = np.where(labels.max(0) > 0.5, 1 + labels.argmax(0), 0)
        ids = {*np.unique(labels).tolist()} - {0}
        assert result is not None
        return {*result.ids} >= ids and tuple(result.labels.shape) == tuple(frame.shape[:2])


def odd_array(draw: random.Random) -> Any:
    """Return a valid frame or mask, or more often an array that is almost one."""
    shapes = ((40, 48, 3), (40, 48), (3, 40, 48), (40, 48, 4), (20, 48, 3), (0, 48, 3), (40,), ())
    shape = draw.choice(shapes[:2] if draw.random() < 0.7 else shapes)
    dtypes = (
        "uint8",
        "uint8",
        "int64",
        "float32",
        "float64",
        "bool",
        "uint16",
        "complex64",
        "object",
    )
    values = np.random.default_rng(draw.randrange(1 << 32)).integers(
        0, draw.choice((2, 9, 300)), shape
    )
    array = np.asarray(values).astype(draw.choice(dtypes))
    if array.dtype.kind == "f" and array.size:
        array /= draw.choice((1, 300, -300))
        array.flat[0] = draw.choice((0.5, np.nan, np.inf, array.flat[0]))
    if array.dtype.kind not in "O" and array.dtype != np.uint16 and draw.random() < 0.3:
        return torch.from_numpy(array)
    return array if draw.random() < 0.95 else draw.choice((None, "frame", [[1]], 3, array.tolist()))


def _foreign(path: Path) -> bool:
    return all(isinstance(x, torch.Tensor) for x in read_state_dict(path).values())


def targets(root: Path) -> list[Target]:
    """Write valid files of every kind to a folder, and return the targets."""
    frames = noise(4, *SIZE)
    stills = []
    for extension in ("png", "jpg", "bmp", "webp", "tif"):
        stills.append(root / f"still.{extension}")
        Image.fromarray(frames[0]).save(stills[-1])
    pages = root / "pages.tif"
    Image.fromarray(frames[0]).save(
        pages, save_all=True, append_images=[Image.fromarray(frames[1])]
    )
    videos = tuple(
        make_video(root / f"clip.{extension}", frames, options={"g": "2"})
        for extension in ("mp4", "mkv")
    )
    masks = root / "indexed.png", root / "grey.png"
    write_labels(masks[0], rectangle(8, 8, 20, 24, 3))
    Image.fromarray(rectangle(8, 8, 20, 24, 3)).save(masks[1])
    seen = torch.from_numpy(np.stack([rectangle(4, 4, 20, 24) > 0, rectangle(24, 30, 9, 9) > 0]))
    proposals = Proposals(boxes_of(seen), seen, torch.tensor([0.9, 0.8]))
    write_proposals(root / "seen.json", [proposals] * 3)
    content = json.loads((root / "seen.json").read_text())
    content["annotations"][0] |= {"id": 1, "category_id": 1, "iscrowd": 0}
    content["annotations"][1]["segmentation"] = [[3, 3, 20, 3, 20, 20]]
    content["annotations"][2]["segmentation"]["counts"] = [200, 48 * 64 - 200]
    (root / "seen.json").write_text(json.dumps(content))
    kept = Kept(root)
    written, foreign, wanted = [], [], {}
    for model in ("stm", "imcnet"):
        config = tiny_config(model, **QUICK.get(model, {}))
        tensors = wanted[model] = state_of(build(model, config, seed=3))
        written.append(root / f"{model}.safetensors")
        save(written[-1], model, config, tensors, trained=True, description="", licence="MIT")
        foreign.append(root / f"{model}.pth")
        torch.save(dict(list(tensors.items())[:40]), foreign[-1])
    export = root / "export"
    export.mkdir()
    (export / "a.onnx").write_bytes(b"graph")
    graph = Graph("a.onnx", hash_of(export / "a.onnx"), (), ())
    Manifest("stm", "memory", 20, "fp32", True, 1, 5, None, 16, (0.5,) * 3, (0.2,) * 3, (0,), True,
             True, {"name": "stm"}, {"encode": graph}).write(export)  # fmt: skip
    manifest = Manifest.read(export)

    def weights(path: Path) -> bool:
        loaded = state_of(load_file(path.stem, path)[0])
        return all(torch.equal(loaded[name], x) for name, x in wanted[path.stem].items())

    states = tuple(sorted(root.glob("*.state")))
    return [
        Target("frames", (*stills, pages, *videos), _frames),
        Target("masks", masks, _mask),
        Target("proposals", (root / "seen.json",), _proposals),
        Target("states", states, kept.read),
        Target("arrays", (masks[0],), kept.step),
        Target("weights", tuple(written), weights),
        Target("state dicts", (*foreign, *written), _foreign),
        Target(
            "model.json", (export / "model.json",), lambda p: Manifest.read(p.parent) == manifest
        ),
    ]


# Cases


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Limit the memory of the process to its present use plus `size` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + size
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a case: `what` is "error", "answer", or the description of a fault."""

    what: str
    seconds: float

    @property
    def is_fault(self) -> bool:
        return self.what not in ("error", "answer")


def try_one(seed: int, all_targets: list[Target], scratch: Path) -> tuple[Target, Outcome]:
    """Try one damaged file, determined by the seed."""
    draw = random.Random(seed)
    target = all_targets[seed % len(all_targets)]
    good = draw.choice(target.files)
    data = good.read_bytes()
    if good.suffix == ".json" and draw.random() < 0.7:
        spoilt = odd_json(data.decode(), draw).encode()
    else:
        others = [other.files[0].read_bytes() for other in all_targets if other is not target]
        spoilt = damaged(data, draw, others)
    folder = scratch / "export" if target.name == "model.json" else scratch
    folder.mkdir(exist_ok=True)
    path = folder / good.name
    path.write_bytes(spoilt)
    if target.name == "model.json":
        (folder / "a.onnx").write_bytes(b"graph")
    start = time.monotonic()
    what = "answer"
    with warnings.catch_warnings(), at_most(BYTES):
        warnings.simplefilter("error")
        try:
            if not target.read(path):
                what = "a wrong answer"
        except VosError as error:
            what = "error" if str(error) else "an error without a message"
        except Exception as error:  # noqa: BLE001 - any other exception is a fault
            what = f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.monotonic() - start
    path.unlink()
    if seconds > SECONDS:
        what = f"{seconds:.1f} s ({what})"
    return target, Outcome(what, seconds)


def try_many(first: int, count: int, report: Callable[[str], None]) -> Counter[tuple[str, str]]:
    """Count outcomes by kind of input; every fault is reported with its seed."""
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        root, scratch = Path(folder) / "good", Path(folder) / "spoilt"
        root.mkdir()
        scratch.mkdir()
        all_targets = targets(root)
        for seed in range(first, first + count):
            target, outcome = try_one(seed, all_targets, scratch)
            outcomes[target.name, "fault" if outcome.is_fault else outcome.what] += 1
            slowest = max(slowest, outcome.seconds)
            if outcome.is_fault:
                report(f"seed {seed}: {target.name}: {outcome.what}")
    report(f"the slowest took {slowest:.2f} s")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    outcomes = try_many(options.first, options.count, say)
    say(f"{'kind':12} {'errors':>7} {'answers':>7} {'faults':>7}")
    for name in sorted({name for name, _ in outcomes}):
        counts = (outcomes[name, what] for what in ("error", "answer", "fault"))
        say(f"{name:12} " + " ".join(f"{count:7}" for count in counts))
    faults = sum(count for (_, what), count in outcomes.items() if what == "fault")
    say(f"{options.count} files in {time.monotonic() - start:.0f} s, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
