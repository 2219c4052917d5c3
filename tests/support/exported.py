"""Exports that tests share: each is written once for all test processes, and kept for later runs as
long as the sources stay the same."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from vosengine import Segmenter
from vosengine.config import TargetAwareConfig
from vosengine.onnx import ExportOptions, OnnxSegmenter, export_model
from vosengine.training.synthetic import Clip, ClipConfig, make_clip
from vosengine.zoo import weights
from vosengine.zoo.weights import load, save, state_of

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "exports"
OUTDATED = 86400.0  # seconds after which exports of other sources are removed
# Of what a trained network sees in tests: it is most of what a step costs, and of no network's
# stride a multiple, so that frames are padded.
SHORT_SIDE = 120
STATIC: dict[str, Any] = {"size": (96, 144), "max_objects": 3}  # of exports at one size
FOREGROUND: dict[str, Any] = {"size": (96, 144)}  # the same of a model with one object
SHIPPED = "weights"
WEIGHTS = "demo.safetensors"  # the same name as the shipped weights

Export = Callable[..., Path]


def small_demo(folder: Path, model: str) -> Path:
    """Write the shipped weights as a file with a smaller input size, and return it. Processes may
    write it concurrently: it appears atomically, with the same contents."""
    path = folder / model / WEIGHTS
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        method, card = load(model, "demo")
        config = method.config
        if config.size is not None:
            small = SHORT_SIDE if isinstance(config.size, int) else (SHORT_SIDE, SHORT_SIDE)
            config = replace(config, size=small)
        if isinstance(config, TargetAwareConfig):  # in small frames, too, there is much to find
            config = replace(config, smallest_proposal=20, centre_window=7, birth_score=0.0)
        metadata = {"description": card.description, "licence": card.licence}
        save(path, model, config, state_of(method), trained=card.trained, **metadata)
    return path


def ship_small(monkeypatch: pytest.MonkeyPatch, folder: Path, *models: str) -> None:
    """Replace the shipped weights by those of `small_demo`, for commands that take names."""
    small = {model: small_demo(folder, model) for model in models}
    monkeypatch.setattr(weights, "_shipped_file", lambda card: small[card.model])


def weights_of(folder: Path, model: str) -> Path:
    """Return the file with the weights of an export by `exporter`, from the shipped ones."""
    return small_demo(folder / SHIPPED, model)


def exporter() -> Export:
    """`export("munet", size=(96, 160))`: the folder, written by this process, by another, or by an
    earlier run of the same sources; nobody may write into it. A file of weights is known by its
    content; those that ship see small frames, and lie beside the graphs."""
    root = BUILT / fingerprint()
    if not root.exists() and BUILT.exists():
        for old in BUILT.iterdir():  # of other sources
            if time.time() - old.stat().st_mtime > OUTDATED:
                shutil.rmtree(old, ignore_errors=True)

    def export(model: str, weights: str | Path = "demo", **options: Any) -> Path:
        settings = [f"{k}{v}" for k, v in sorted(options.items())]
        source = "demo" if weights == "demo" else _hash([Path(weights)])
        name = "".join(c for c in "-".join([model, source, *settings]) if c.isalnum() or c in "-_")
        folder, part = root / name, root / f"{name}.part"
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others find what the first has written
            if not folder.exists():
                shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
                part.mkdir()
                chosen = weights_of(part, model) if weights == "demo" else weights
                export_model(model, ExportOptions(part, weights=str(chosen), **options))
                part.rename(folder)
        return folder

    return export


def _hash(files: Iterable[Path], *more: str) -> str:
    seen = hashlib.sha256(" ".join(more).encode())
    for path in files:
        seen.update(path.name.encode() + path.read_bytes())
    return seen.hexdigest()[:16]


@cache
def fingerprint() -> str:
    """Hash of everything that an export depends on: sources, weights, and libraries."""
    sources = [path for name in ("vosengine", "kernels") for path in (ROOT / name).rglob("*.py")]
    sources += [*(ROOT / "weights").rglob("*.safetensors"), Path(__file__)]
    libraries = ("torch", "onnx", "onnxscript", "numpy")
    versions = (onnxruntime.__version__, *(version(name) for name in libraries))
    return _hash(sorted(sources), sys.version, *versions)


def draw_clip(size: tuple[int, int], objects: int, frames: int = 6) -> Clip:
    """Return a clip in which every object is visible from the first frame on."""
    config = ClipConfig(frames=frames, height=size[0], width=size[1], objects=(objects, objects))
    return make_clip(config, seed=3)


def both(folder: Path, **options: Any) -> tuple[OnnxSegmenter, Segmenter]:
    """Return an OnnxSegmenter of the export, and an eager Segmenter."""
    segmenter = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
    weights = weights_of(folder, segmenter.model)
    reference = Segmenter(
        segmenter.model, weights=weights, device="cpu", precision="fp32", engine="eager", **options
    )
    return segmenter, reference


def answers(
    engine: Any, frames: Sequence[np.ndarray], prompts: dict[int, np.ndarray]
) -> list[np.ndarray]:
    """Return the labels of every frame."""
    results = [engine.step(frame, prompts.get(i)) for i, frame in enumerate(frames)]
    results = [result for result in results if result is not None] + engine.flush()
    return [result.numpy() for result in results]


def differing(labels: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Return the share of labels that differ."""
    assert len(labels) == len(reference)
    return float(np.mean(np.stack(labels) != np.stack(reference)))
