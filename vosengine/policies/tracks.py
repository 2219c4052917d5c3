"""Tracks of target-aware U-VOS: association, births, and weights of training samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..config import TargetAwareConfig


class Lesson(NamedTuple):
    """A training sample of a track.

    slot      slot of the track
    verified  whether a proposal verifies its mask in this frame
    due       whether its target model is refitted
    """

    slot: int
    verified: bool
    due: bool


# Configuration fields used here; an export's manifest contains them.
RULES = (
    *("match_overlap", "match_score", "birth_overlap", "birth_score", "smallest_sample"),
    *("update_every", "learning_rate", "verified_weight", "verified_feeds"),
)


def associate(
    rules: TargetAwareConfig,
    overlap: np.ndarray,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[list[int | None], list[int]]:
    """The proposal that verifies each track (or None), and the proposals that match no track.

    s(p, Y) = (cos(e_p, e(y_k)) + cos(e_p, e(y_k0))) [IoU(p, y_k) > 0.5]   (equation 10)

    One to one, in descending order of s (ours). A proposal is new if s is 0 for all tracks and its
    overlap with each is below birth_overlap.

    overlap  [K, P] float32, intersection over union
    compare  returns the sum of both cosines, float32 [k, p], for track and proposal indices;
             called at most once, for those in any candidate pair
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
    """Indices of the new proposals that begin tracks, at most `room`.

    A proposal needs a score of at least birth_score, and an overlap below birth_overlap with those
    before it, as with tracks of earlier frames (ours): detectors other than D-Net may return an
    object twice.

    scores   [P] float32
    overlap  [P, P] float32, pairwise intersection over union
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
    """The training samples of a frame; masks smaller than smallest_sample give none.

    areas     pixels of each track's mask, by slot
    verified  whether the mask is verified, by slot
    ages      frames since the track began, by slot
    """
    return [
        Lesson(slot, is_verified, is_verified or age % rules.update_every == 0)
        for slot, (area, is_verified, age) in enumerate(zip(areas, verified, ages, strict=False))
        if area >= rules.smallest_sample
    ]


def begin_samples(rules: TargetAwareConfig, weight: np.ndarray, count: int) -> None:
    """Initialise a new track's sample weights [S] float32 in place: gamma / count for the first
    `count` samples (ours), else 0."""
    weight[:] = 0
    weight[:count] = rules.learning_rate / count


def push_sample(
    rules: TargetAwareConfig, weight: np.ndarray, filled: int, *, verified: bool
) -> int:
    """Update sample weights [S] float32 in place for one more sample; returns its index.

    The index is the next free one (`filled` are in use), or that of the smallest weight.

    The paper's alpha_j = alpha_(j-1) / (1 - gamma), doubled if verified, overflows float32 after
    800 frames. Only ratios matter, so the older weights shrink instead of the new one growing: the
    same recursion, each step divided by its factor.
    """
    gamma = rules.learning_rate
    factor = rules.verified_weight if verified else 1.0
    place = filled if filled < len(weight) else int(weight.argmin())
    weight *= (1 - gamma) / (factor if rules.verified_feeds else 1)
    weight[place] = gamma * (1 if rules.verified_feeds else factor)
    return place
