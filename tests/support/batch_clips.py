"""Small clips for tests of batches, and the results of `run` on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vosengine.batch.plan import BatchOptions
from vosengine.batch.supervisor import Event, Supervisor
from vosengine.commands.run import RunOptions, run
from vosengine.video import write_labels

SIZE = (32, 48)
RUN: dict[str, Any] = {"model": "stm", "device": "cpu", "size": 32, "checkpoint": 2}
CLIPS = {"a": 3, "b": 6, "c": 4}


def make_frames(folder: Path, count: int, seed: int) -> None:
    """Write frames of a bright square that moves over noise."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed).integers(0, 90, (*SIZE, 3), np.uint8)
    for index in range(count):
        image = noise.copy()
        image[8:22, 6 + 3 * index : 20 + 3 * index] = 200, 180, 40 * seed
        Image.fromarray(image).save(folder / f"{index:05d}.png")


def square(left: int, *ids: int) -> np.ndarray:
    """A mask with one upright block per id, side by side."""
    labels = np.zeros(SIZE, np.uint8)
    for number, object_id in enumerate(ids):
        labels[8:22, left + 8 * number : left + 8 * number + 7] = object_id
    return labels


def make_clips(folder: Path) -> Path:
    """Three clips with their masks beside them."""
    for seed, (name, count) in enumerate(CLIPS.items(), 1):
        make_frames(folder / name, count, seed)
        write_labels(folder / f"{name}.png", square(6, 1))
    return folder


def run_alone(data: Path, out: Path) -> dict[str, dict[str, bytes]]:
    """Results of `run` for each clip."""
    for name in CLIPS:
        run(RunOptions(str(data / name), out=out / name, mask=data / f"{name}.png", **RUN))
    return {name: results(out / name) for name in CLIPS}


def results(folder: Path) -> dict[str, bytes]:
    """Contents of masks and overlay by name, without the files that contain times."""
    files = (path for path in folder.iterdir() if path.suffix in (".png", ".mp4"))
    return {path.name: path.read_bytes() for path in files}


def options(data: object, out: Path | str, **changes: Any) -> BatchOptions:
    run = {**RUN, **changes.pop("run", {})}
    return BatchOptions((str(data),), out, run, **changes)


def batch_arguments(data: object, out: object) -> list[str]:
    """Command-line arguments for `options`."""
    arguments = ["batch", str(data), "--out", str(out), "--model", "stm", "--device", "cpu"]
    return [*arguments, "--size", "32", "--checkpoint", "2", "--retries", "1"]


def in_another_process(victim: str, notes: Path, arguments: list[str]) -> int:
    """Run `vosengine` with Deadly as its worker; returns the exit code."""
    program = [sys.executable, str(Path(__file__).with_name("batch_units.py")), victim, str(notes)]
    return subprocess.run([*program, *arguments], check=False, timeout=300).returncode


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process jobs in this process, for tests that are not about processes."""

    def work(self: Supervisor, jobs: list[Any], should_stop: Callable[[], bool]) -> bool:
        worker = self._start()
        for job in jobs:
            self._listen(Event("done", job, worker(job, lambda frames: None, should_stop)))
        return False

    monkeypatch.setattr(Supervisor, "work", work)
