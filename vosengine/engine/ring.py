"""The frames that a stream holds for answers to come, whichever engine it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from ..types import A, Prompt


@dataclass(frozen=True)
class Pending(Generic[A]):
    """A frame in the ring: its number, its features, and the prompt that came with it."""

    index: int
    features: Any
    prompt: Prompt[A] | None


@dataclass(frozen=True)
class View(Generic[A]):
    """What one answer is made of.

    seen    features of the frames that the method looks at, in its order; where one is not in the
            ring (before the first, or after the newest) the nearest stands in for it
    prompt  that came with the frame answered for
    later   ids that prompts of later frames name
    """

    seen: list[Any]
    prompt: Prompt[A] | None
    later: tuple[int, ...]

    @classmethod
    def of(cls, ring: Sequence[Pending[A]], target: int, sees: Sequence[int]) -> View[A]:
        """For the frame of index `target`, of a method that looks at `sees` (relative to it)."""
        first, last = ring[0].index, ring[-1].index
        seen = [ring[min(max(target + each, first), last) - first].features for each in sees]
        return cls(seen, ring[target - first].prompt, awaited(ring[target - first + 1 :]))


def awaited(ring: Sequence[Pending[A]]) -> tuple[int, ...]:
    """The ids that the prompts in a ring name."""
    return tuple(i for each in ring if each.prompt is not None for i in each.prompt.ids)


def still_needed(ring: Sequence[Pending[A]], target: int, sees: Sequence[int]) -> list[Pending[A]]:
    """Of a ring what the answers after that for frame `target` look at."""
    oldest = target + 1 + min(0, *sees)
    return [held for held in ring if held.index >= oldest]
