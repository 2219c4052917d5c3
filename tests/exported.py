"""Exports that tests share: each is written once, whichever of the test processes asks first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosengine import Segmenter
from vosengine.onnx import ExportOptions, OnnxSegmenter, export_model
from vosengine.onnx.manifest import MANIFEST
from vosengine.training.synthetic import Clip, ClipConfig, make_clip

FAILED = "failed"
LONGEST = 600.0  # seconds that another process may take for one export

Export = Callable[..., Path]


def exporter(factory: pytest.TempPathFactory, worker: str) -> Export:
    """`export("munet", size=(96, 160))`: the folder, written by this process or by another. A file
    of weights is known by its name."""
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
    theirs = Segmenter(
        ours.model, weights="demo", device="cpu", precision="fp32", engine="eager", **options
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
