"""Exports that tests share: each is written once, whichever of the test processes asks first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosengine import Segmenter
from vosengine.config import TargetAwareConfig
from vosengine.onnx import ExportOptions, OnnxSegmenter, export_model
from vosengine.onnx.manifest import MANIFEST
from vosengine.training.synthetic import Clip, ClipConfig, make_clip
from vosengine.zoo.weights import load, save, state_of

FAILED = "failed"
LONGEST = 600.0  # seconds that another process may take for one export
SHORT_SIDE = 120  # of what a trained network sees in tests: it is most of what a step costs, and
# of no network's stride a multiple, so that frames are padded
SHIPPED = "weights"
WEIGHTS = "demo.safetensors"  # so that they are named as those that ship

Export = Callable[..., Path]


def small_demo(folder: Path, model: str) -> Path:
    """The trained weights that ship, in a file of a network that sees smaller frames. Processes
    may write it at once: it appears whole, and is the same from all."""
    path = folder / model / WEIGHTS
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        method, card = load(model, "demo")
        config = method.config
        if isinstance(config.size, int):
            config = replace(config, size=SHORT_SIDE)
        if isinstance(config, TargetAwareConfig):  # in small frames, too, there is much to find
            config = replace(config, smallest_proposal=20, centre_window=7, birth_score=0.0)
        words = {"description": card.description, "licence": card.licence}
        save(path, model, config, state_of(method), trained=card.trained, **words)
    return path


def weights_of(folder: Path, model: str) -> Path:
    """The file whose weights an export of `exporter` has, those that ship."""
    return small_demo(folder / SHIPPED, model)


def exporter(factory: pytest.TempPathFactory, worker: str) -> Export:
    """`export("munet", size=(96, 160))`: the folder, written by this process or by another. A file
    of weights is known by its name; those that ship see small frames, and lie beside the graphs."""
    root = factory.getbasetemp()
    if worker != "master":
        root = root.parent

    def export(model: str, weights: str | Path = "demo", **options: Any) -> Path:
        words = (f"{k}{v}" for k, v in sorted(options.items()))
        name = "-".join([model, Path(weights).stem, *words])
        folder = root / "exported" / "".join(c for c in name if c.isalnum() or c in "-_")
        folder.parent.mkdir(exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            _wait(folder / MANIFEST)
        else:
            try:
                if weights == "demo":
                    weights = weights_of(folder, model)
                export_model(model, ExportOptions(folder, weights=str(weights), **options))
            except BaseException:
                (folder / FAILED).touch()  # those who wait need not wait on
                raise
        return folder

    return export


def _wait(path: Path) -> None:
    end = time.monotonic() + LONGEST
    while not path.exists():
        assert not (path.parent / FAILED).exists(), f"{path.parent} could not be written"
        assert time.monotonic() < end, f"no other process has written {path}"
        time.sleep(0.2)


def drawn(size: tuple[int, int], objects: int, frames: int = 6) -> Clip:
    """A clip in which every object is there from the first frame on."""
    config = ClipConfig(frames=frames, height=size[0], width=size[1], objects=(objects, objects))
    return make_clip(config, seed=3)


def both(folder: Path, **options: Any) -> tuple[OnnxSegmenter, Segmenter]:
    """The export's stream, and torch's layer by layer."""
    ours = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
    weights = weights_of(folder, ours.model)
    theirs = Segmenter(
        ours.model, weights=weights, device="cpu", precision="fp32", engine="eager", **options
    )
    return ours, theirs


def answers(
    engine: Any, frames: Sequence[np.ndarray], prompts: dict[int, np.ndarray]
) -> list[np.ndarray]:
    """Labels of every frame."""
    results = [engine.step(frame, prompts.get(i)) for i, frame in enumerate(frames)]
    results = [result for result in results if result is not None] + engine.flush()
    return [result.numpy() for result in results]


def differing(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The share of labels that differ."""
    assert len(ours) == len(theirs)
    return float(np.mean(np.stack(ours) != np.stack(theirs)))
