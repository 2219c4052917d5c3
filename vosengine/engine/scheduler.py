"""Scheduler: which pending frames run next, and which of them in one batch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Waiting(Generic[S]):
    """A pending frame.

    stream  the stream whose next frame it is
    group   batching key (frame geometry and memory setting): equal groups may share a batch
    alone   whether it must run alone (it has a prompt)
    """

    stream: S
    group: Hashable
    alone: bool


class Scheduler(Generic[S]):
    """First in, first out, with at most one pending frame per stream; never waits to fill a batch.

    max_batch  maximum number of frames per batch
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._waiting: dict[S, Waiting[S]] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, stream: S) -> bool:
        return stream in self._waiting

    def add(self, stream: S, group: Hashable, *, alone: bool) -> None:
        """Add the next frame of a stream. Raises ValueError if it has a pending frame."""
        if stream in self._waiting:
            raise ValueError(f"{stream}: has a frame that waits")
        self._waiting[stream] = Waiting(stream, group, alone)

    def drop(self, stream: S) -> None:
        """Remove a stream's pending frame, if any."""
        self._waiting.pop(stream, None)

    def next(self) -> list[S]:
        """The streams of the next batch, in order of arrival; empty if no frame is pending.

        Frames stay pending until dropped.
        """
        if not self._waiting:
            return []
        first = next(iter(self._waiting.values()))
        batch = [
            frame
            for frame in self._waiting.values()
            if frame is first or (frame.group == first.group and not (first.alone or frame.alone))
        ]
        return [frame.stream for frame in batch[: self.max_batch]]
