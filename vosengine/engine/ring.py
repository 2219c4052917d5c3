"""Ring of the frames that a stream keeps for upcoming answers; independent of the backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from ..types import A, Prompt


@dataclass(frozen=True)
class Pending(Generic[A]):
    """A frame in the ring: its index, its features and its prompt."""

    index: int
    features: Any
    prompt: Prompt[A] | None


@dataclass(frozen=True)
class View(Generic[A]):
    """The inputs of one answer.

    seen    features of the frames at the method's offsets `sees`, in that order; a frame before
            the first or after the newest is replaced by the nearest
    prompt  of the frame answered for, or None
    later   ids in the prompts of later frames
    """

    seen: list[Any]
    prompt: Prompt[A] | None
    later: tuple[int, ...]

    @classmethod
    def of(cls, ring: Sequence[Pending[A]], target: int, sees: Sequence[int]) -> View[A]:
        """The view for frame `target`; sees: the method's frame offsets relative to it."""
        first, last = ring[0].index, ring[-1].index
        seen = [ring[min(max(target + offset, first), last) - first].features for offset in sees]
        return cls(seen, ring[target - first].prompt, prompted_ids(ring[target - first + 1 :]))


def prompted_ids(ring: Sequence[Pending[A]]) -> tuple[int, ...]:
    """The object ids in the prompts of a ring's frames."""
    return tuple(i for frame in ring if frame.prompt is not None for i in frame.prompt.ids)


def still_needed(ring: Sequence[Pending[A]], target: int, sees: Sequence[int]) -> list[Pending[A]]:
    """The frames of a ring that the answers after frame `target` need."""
    oldest = target + 1 + min(0, *sees)
    return [frame for frame in ring if frame.index >= oldest]
