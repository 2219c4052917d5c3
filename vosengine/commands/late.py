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
    """Wrap a stream so that its first mask may be that of frame `start`."""
    if isinstance(stream.proposals, FileSource):
        stream.proposals.first_frame = start
    return replace(stream, segmenter=LateStream(stream.segmenter, start))


class LateStream:
    """A segmenter that gets no frame before its first mask.

    Results of the frames before are empty; later ones equal those of a stream that begins at the
    first mask. `step`, `flush` and `load_state` have the meaning and latency of the segmenter's;
    other attributes are the segmenter's.

    segmenter  a segmenter of either engine, before its first frame
    start      index of the frame with the first mask
    """

    def __init__(self, segmenter: Any, start: int) -> None:
        self._segmenter, self._start = segmenter, start
        self._size: Size | None = None
        self.frame_count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Result[Any] | None:
        """Take a frame; return the result of the one `latency` frames before. See Segmenter."""
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
            return self._empty_result(target, size)
        return None if result is None else self._shifted(result)

    def flush(self) -> list[Result[Any]]:
        """Return the results of the last `latency` frames."""
        if self._size is None:
            return []
        first = max(0, self.frame_count - self.latency)
        waiting = range(first, min(self._start, self.frame_count))
        answers = [self._empty_result(index, self._size) for index in waiting]
        return answers + [self._shifted(result) for result in self._segmenter.flush()]

    def load_state(self, path: str | Path) -> None:
        """Restore a saved stream. If it was stopped before its first mask, it starts over."""
        self._segmenter.load_state(path)
        seen: int = self._segmenter.frame_count
        self.frame_count = self._start + seen if seen else 0
        geometry = self._segmenter.geometry
        self._size = None if geometry is None else geometry.frame

    def _empty_result(self, index: int, size: Size) -> Result[Any]:
        labels = np.zeros(size, np.uint8)
        return Result(labels, (), index, partial(np.ones, (1, *size), np.float32))

    def _shifted(self, result: Result[Any]) -> Result[Any]:
        return replace(result, frame_index=result.frame_index + self._start)
