"""Stream without a network for tests of the file handling of `run`: bright pixels are object 1."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosengine.commands import run as command
from vosengine.commands.engines import Stream
from vosengine.errors import InputError
from vosengine.files import write_whole
from vosengine.types import Geometry


@dataclass(frozen=True)
class Answer:
    """The part of Result that `run` uses."""

    frame_index: int
    labels: np.ndarray

    def numpy(self) -> np.ndarray:
        return self.labels


class StubSegmenter:
    """Stub segmenter: labels are the prompt mask, else 1 where red is above 127; pixels in the
    corner encode the frame number, so that a misplaced result is detected."""

    latency = 0
    max_objects = 10
    ids = (1,)

    def __init__(self) -> None:
        self.frame_count = 0
        self.geometry: Geometry | None = None

    def reserve(self, ids: tuple[int, ...]) -> None:
        pass

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Answer:
        size = frame.shape[0], frame.shape[1]
        if self.geometry is not None and self.geometry.frame != size:
            raise InputError(f"frame: the stream is {self.geometry.frame}, given {size}")
        if mask is not None and len(np.unique(mask)) > 1 + self.max_objects:
            raise InputError("mask: more objects than there is room for")
        labels = (frame[..., 0] > 127).astype(np.uint8) if mask is None else mask.copy()
        labels[0, 0] = 1 + self.frame_count % 200
        self.geometry = Geometry.fit(size, size=None, multiple=1)
        self.frame_count += 1
        return Answer(self.frame_count - 1, labels)

    def flush(self) -> list[Answer]:
        return []

    def save_state(self, path: Path) -> None:
        write_whole(path, json.dumps(self.frame_count))

    def load_state(self, path: Path) -> None:
        self.frame_count = json.loads(path.read_text())


def stub_stream(options: Any, shared: Any = None, **changes: Any) -> Stream:
    """Return a stream as `make_stream` does, with a stub."""
    facts = {
        "model": options.model,
        "weights": {"name": "stub", "trained": True, "note": "stub"},
        "proposals": None,
        "device": "cpu",
        "device_name": "none",
    }
    defaults = {
        "segmenter": StubSegmenter(),
        "needs_mask": False,
        "takes_mask": True,
        "can_be_saved": True,
        "facts": facts,
        "note": None,
    }
    return Stream(**{**defaults, **changes})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `run` use the stub for every model."""
    monkeypatch.setattr(command, "make_stream", stub_stream)
