"""Exports shared by tests: each is written once, by the first test process that requests it."""

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
LONGEST = 600.0  # timeout in seconds for an export by another process
SHORT_SIDE = 120  # input size of trained networks in tests: it dominates the cost of a step, and is
# not a multiple of any network's stride, so that frames are padded
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
        if isinstance(config.size, int):
            config = replace(config, size=SHORT_SIDE)
        if isinstance(config, TargetAwareConfig):  # many discoveries in small frames, too
            config = replace(config, smallest_proposal=20, centre_window=7, birth_score=0.0)
        words = {"description": card.description, "licence": card.licence}
        save(path, model, config, state_of(method), trained=card.trained, **words)
    return path


def weights_of(folder: Path, model: str) -> Path:
    """Return the file with the weights of an export by `exporter`, from the shipped ones."""
    return small_demo(folder / SHIPPED, model)


def exporter(factory: pytest.TempPathFactory, worker: str) -> Export:
    """Return `export(model, weights, **options)`, such as `export("munet", size=(96, 160))`, which
    returns the folder, written by this or another process. Weights files are identified by name;
    the shipped ones have a small input size, and are stored beside the graphs."""
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
                (folder / FAILED).touch()  # ends the wait of other processes
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
    """Return a clip in which every object is visible from the first frame on."""
    config = ClipConfig(frames=frames, height=size[0], width=size[1], objects=(objects, objects))
    return make_clip(config, seed=3)


def both(folder: Path, **options: Any) -> tuple[OnnxSegmenter, Segmenter]:
    """Return an OnnxSegmenter of the export, and an eager Segmenter."""
    ours = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
    weights = weights_of(folder, ours.model)
    theirs = Segmenter(
        ours.model, weights=weights, device="cpu", precision="fp32", engine="eager", **options
    )
    return ours, theirs


def answers(
    engine: Any, frames: Sequence[np.ndarray], prompts: dict[int, np.ndarray]
) -> list[np.ndarray]:
    """Return the labels of every frame."""
    results = [engine.step(frame, prompts.get(i)) for i, frame in enumerate(frames)]
    results = [result for result in results if result is not None] + engine.flush()
    return [result.numpy() for result in results]


def differing(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Return the share of labels that differ."""
    assert len(ours) == len(theirs)
    return float(np.mean(np.stack(ours) != np.stack(theirs)))
