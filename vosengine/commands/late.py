"""Streams whose first mask comes after the first frame, for models that need a mask."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..detectors.file import FileSource
from ..errors import InputError
from ..types import Result, Size
from .engines import Stream


def begin_late(stream: Stream, start: int) -> Stream:
    """The stream as one whose first mask is that of the frame with that index."""
    if isinstance(stream.proposals, FileSource):
        stream.proposals.first_frame = start
    return replace(stream, segmenter=LateStream(stream.segmenter, start))


class LateStream:
    """A segmenter that is shown nothing before its first mask: those frames have empty masks, and
    from there on the answers are those of a stream that begins there.

    `step`, `flush`, `save_state` and `load_state` are the segmenter's, with its latency; what else
    there is of it is passed on.

    segmenter  of either engine, before its first frame
    start      the index of the frame with the first mask
    """

    def __init__(self, segmenter: Any, start: int) -> None:
        self._segmenter, self._start = segmenter, start
        self._size: Size | None = None
        self.frame_count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Result[Any] | None:
        """Take one frame and answer for the one that lies `latency` back, as Segmenter.step."""
        size = frame.shape[0], frame.shape[1]
        if self._size not in (None, size):
            raise InputError(f"frame: the stream is {self._size}, given {size}; resize the frame")
        result = None
        if self.frame_count >= self._start:
            result = self._segmenter.step(frame, mask)
        self._size = size
        self.frame_count += 1
        target = self.frame_count - 1 - self.latency
        if 0 <= target < self._start:
            return self._nothing(target, size)
        return None if result is None else self._later(result)

    def flush(self) -> list[Result[Any]]:
        """Answer for the last `latency` frames."""
        if self._size is None:
            return []
        first = max(0, self.frame_count - self.latency)
        waiting = range(first, min(self._start, self.frame_count))
        answers = [self._nothing(index, self._size) for index in waiting]
        return answers + [self._later(result) for result in self._segmenter.flush()]

    def load_state(self, path: str | Path) -> None:
        """Go on with a saved stream; one that was stopped before its first mask begins anew."""
        self._segmenter.load_state(path)
        seen: int = self._segmenter.frame_count
        self.frame_count = self._start + seen if seen else 0
        geometry = self._segmenter.geometry
        self._size = None if geometry is None else geometry.frame

    def _nothing(self, index: int, size: Size) -> Result[Any]:
        labels = np.zeros(size, np.uint8)
        return Result(labels, (), index, partial(np.ones, (1, *size), np.float32))

    def _later(self, result: Result[Any]) -> Result[Any]:
        return replace(result, frame_index=result.frame_index + self._start)
