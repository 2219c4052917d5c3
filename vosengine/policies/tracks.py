"""Which proposal is which track, which begin one, and what tracks learn: by numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..config import TargetAwareConfig


class Lesson(NamedTuple):
    """A track that learns from a frame: its slot, whether its mask there is verified, and whether
    it is to be fitted anew."""

    slot: int
    verified: bool
    due: bool


# What is decided by, of an export's settings too.
RULES = (
    *("match_overlap", "match_score", "birth_overlap", "birth_score", "smallest_sample"),
    *("update_every", "learning_rate", "verified_weight", "verified_feeds"),
)


def associate(
    rules: TargetAwareConfig,
    overlap: np.ndarray,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[list[int | None], list[int]]:
    """Per track the proposal that verifies it, and the proposals that nothing tracked explains.

    s(p, Y) = (cos(e_p, e(y_k)) + cos(e_p, e(y_k0))) [IoU(p, y_k) > 0.5]   (equation 10)

    One to one, the greatest s first [O]; a proposal is new if its s is 0 for all tracks and it
    overlaps none of them by birth_overlap.

    overlap  [K, P] float32, intersection over union
    compare  both cosines, float32 [k, p], of the tracks and the proposals with these numbers:
             asked once, for those that are in any candidate pair
    """
    matched: list[int | None] = [None] * len(overlap)
    candidate = overlap > rules.match_overlap
    tracks, proposals = (np.flatnonzero(candidate.any(axis=axis)) for axis in (1, 0))
    if len(tracks):
        scores = np.zeros(overlap.shape, np.float32)
        scores[tracks[:, None], proposals] = compare(tracks, proposals)
        pairs = np.argwhere(scores * candidate > rules.match_score).tolist()
        for track, proposal in sorted(pairs, key=lambda pair: -scores[pair[0], pair[1]]):
            if matched[track] is None and proposal not in matched:
                matched[track] = proposal
    unseen = ~candidate.any(axis=0) & (overlap < rules.birth_overlap).all(axis=0)
    return matched, np.flatnonzero(unseen).tolist()


def births(
    rules: TargetAwareConfig, scores: np.ndarray, overlap: np.ndarray, room: int
) -> list[int]:
    """Of new proposals those that begin tracks: the first, of a score of birth_score or more,
    none of which overlaps one before it by birth_overlap, as none may that comes a frame later
    [O]. D-Net's never do; those of other detectors do where they see an object twice.

    scores [P] float32, overlap [P, P] of each with each
    """
    born: list[int] = []
    for number, score in enumerate(scores.tolist()):
        apart = (overlap[number, born] < rules.birth_overlap).all()
        if len(born) < room and score >= rules.birth_score and apart:
            born.append(number)
    return born


def lessons(
    rules: TargetAwareConfig, areas: Sequence[int], verified: Sequence[bool], ages: Sequence[int]
) -> list[Lesson]:
    """Of every track, in order of slot: the pixels of its mask in a frame, whether that is
    verified, and the frames since it began. Too small a mask teaches nothing."""
    return [
        Lesson(slot, sure, sure or age % rules.update_every == 0)
        for slot, (area, sure, age) in enumerate(zip(areas, verified, ages, strict=False))
        if area >= rules.smallest_sample
    ]


def begin_samples(rules: TargetAwareConfig, weight: np.ndarray, count: int) -> None:
    """The weights [S] float32 of a new track's samples, the first `count`: equal shares of
    gamma [O], and zeros where there is none."""
    weight[:] = 0
    weight[:count] = rules.learning_rate / count


def push_sample(
    rules: TargetAwareConfig, weight: np.ndarray, filled: int, *, verified: bool
) -> int:
    """Weigh one more sample in [S] float32, of which `filled` are in use. Returns the place
    that it takes, the next free one or that of the lightest.

    The paper's alpha_j = alpha_(j-1) / (1 - gamma), doubled when verified, outgrows float32
    after 800 frames. Only ratios count, so instead of the new weight growing the older ones
    shrink: the same recursion, each step divided by its factor.
    """
    gamma = rules.learning_rate
    factor = rules.verified_weight if verified else 1.0
    place = filled if filled < len(weight) else int(weight.argmin())
    weight *= (1 - gamma) / (factor if rules.verified_feeds else 1)
    weight[place] = gamma * (1 if rules.verified_feeds else factor)
    return place
