"""Which of the frames that wait go through the network next, and which of them together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Waiting(Generic[S]):
    """A frame that waits.

    stream  that it is the next of
    group   frames of one group may go through the network together: of one size
    alone   whether it goes by itself: one with a prompt
    """

    stream: S
    group: Hashable
    alone: bool


class Scheduler(Generic[S]):
    """At most one frame of a stream waits; the one that waits longest goes first, and nobody waits
    for company.

    max_batch  frames at most that go together
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._waiting: dict[S, Waiting[S]] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, stream: S) -> bool:
        return stream in self._waiting

    def add(self, stream: S, group: Hashable, *, alone: bool) -> None:
        """The next frame of a stream that has none waiting."""
        if stream in self._waiting:
            raise ValueError(f"{stream}: has a frame that waits")
        self._waiting[stream] = Waiting(stream, group, alone)

    def drop(self, stream: S) -> None:
        """Forget what of a stream waits, if anything does."""
        self._waiting.pop(stream, None)

    def next(self) -> list[S]:
        """The streams whose frames go next, in order of arrival; each waits until it is dropped.
        Empty where none waits."""
        if not self._waiting:
            return []
        first = next(iter(self._waiting.values()))
        fellows = [
            each
            for each in self._waiting.values()
            if each is first or (each.group == first.group and not (first.alone or each.alone))
        ]
        return [each.stream for each in fellows[: self.max_batch]]
