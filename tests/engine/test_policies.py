"""Policies shared by both engines: tracks and their samples, first frames, stored labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vosengine.config import TargetAwareConfig
from vosengine.policies.references import FirstFrames
from vosengine.policies.support import SupportPlan
from vosengine.policies.tracks import associate, begin_samples, births, lessons, push_sample


def rules(**changes: Any) -> TargetAwareConfig:
    return TargetAwareConfig(**changes)


def test_tracks_are_compared_once_with_the_proposals_that_overlap_them() -> None:
    overlap = np.array([[0.6, 0.0, 0.05], [0.0, 0.5, 0.0]], np.float32)
    calls = []

    def compare(tracks: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        calls.append((tracks.tolist(), proposals.tolist()))
        return np.full((len(tracks), len(proposals)), 0.61, np.float32)

    assert associate(rules(), overlap, compare) == ([0, None], [2])
    assert calls == [([0], [0])]


def cosines_from(cosines: list[list[float]]) -> Any:
    return lambda tracks, proposals: np.array(cosines, np.float32)[np.ix_(tracks, proposals)]


def test_the_greatest_scores_come_first_and_one_to_one() -> None:
    overlap = np.array([[0.6, 0.7, 0.0], [0.8, 0.6, 0.2]], np.float32)
    cosines = [[0.9, 0.8, 0.0], [1.2, 0.7, 0.0]]
    assert associate(rules(), overlap, cosines_from(cosines)) == ([1, 0], [])
    overlap[0, 1] = 0.4  # the first track has the proposal of the second, or none
    assert associate(rules(), overlap, cosines_from(cosines)) == ([None, 0], [])


def test_only_what_exceeds_the_bounds_is_matched_and_only_what_is_below_is_new() -> None:
    chosen = rules(match_overlap=0.5, match_score=0.75, birth_overlap=0.125)
    overlap = np.array([[0.0, 0.0, 0.125], [0.0, 0.75, 0.0], [0.75, 0.0, 0.0]], np.float32)
    cosines = [[0.0] * 3, [0.0, 0.75, 0.0], [0.8, 0.0, 0.0]]
    assert associate(chosen, overlap, cosines_from(cosines)) == ([None, None, 0], [])
    overlap[0, 2] = 0.1
    assert associate(chosen, overlap, cosines_from(cosines)) == ([None, None, 0], [2])
    wide = np.zeros((2, 4), np.float32)
    wide[1, 3] = 0.6
    calls = []

    def compare(tracks: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        calls.append((tracks.tolist(), proposals.tolist()))
        return np.ones((1, 1), np.float32)

    assert associate(chosen, wide, compare) == ([None, 3], [0, 1, 2])
    assert calls == [([1], [3])]


@pytest.mark.parametrize("birth_overlap", [0.0, 0.1])
def test_without_tracks_every_proposal_is_new(birth_overlap: float) -> None:
    result = associate(rules(birth_overlap=birth_overlap), np.zeros((0, 3), np.float32), None)  # type: ignore[arg-type]
    assert result == ([], [0, 1, 2])
    assert associate(rules(), np.zeros((2, 0), np.float32), None) == ([None, None], [])  # type: ignore[arg-type]


def test_births_are_sure_apart_and_few() -> None:
    scores = np.array([0.9, 0.2, 0.8, 0.7, 0.6], np.float32)
    overlap = np.eye(5, dtype=np.float32)
    overlap[2, 0] = overlap[0, 2] = 0.1  # an object that is seen twice
    assert births(rules(birth_score=0.3), scores, overlap, 9) == [0, 3, 4]
    assert births(rules(birth_score=0.3), scores, overlap, 2) == [0, 3]
    assert births(rules(), scores, overlap, 0) == []
    assert births(rules(birth_score=0.5), np.array([0.5, 0.25], np.float32), np.eye(2), 9) == [0]


def test_who_learns_and_who_is_fitted() -> None:
    taught = lessons(
        rules(smallest_sample=10, update_every=8),
        [9, 10, 99, 99],
        [True, True, False, False],
        [8, 1, 16, 15],
    )
    assert taught == [(1, True, True), (2, False, True), (3, False, False)]


def test_a_sample_pushes_out_the_lightest() -> None:
    chosen = rules(learning_rate=0.1, verified_weight=2.0, verified_feeds=False)
    weight = np.ones(3, np.float32)
    begin_samples(chosen, weight, 2)
    assert weight.tolist() == pytest.approx([0.05, 0.05, 0])
    assert push_sample(chosen, weight, 2, verified=True) == 2
    assert push_sample(chosen, weight, 3, verified=False) == 0
    assert weight.tolist() == pytest.approx([0.1, 0.0405, 0.18])


def test_first_frames_are_shared_and_leave_no_gap() -> None:
    first = FirstFrames(1)
    assert first.end == 1
    assert first.begin(2) == 1
    assert first.begin(2) is None
    assert first.begin(3) == 2
    assert first.begin(4) == 3
    assert first.rows == [1, 1, 2, 3]
    assert first.forget(0) is None  # the other object of frame 1 keeps it
    assert first.rows == [3, 1, 2]
    assert first.forget(1) == (3, 1)
    assert (first.rows, first.end) == ([1, 2], 3)
    assert first.forget(1) is None  # the last row
    assert first.forget(0) is None
    assert (first.rows, first.end) == ([], 1)


def test_stored_labels_of_a_forgotten_object_are_background() -> None:
    plan = SupportPlan(6, 3, literal=False)
    plan.add(True)
    plan.places = [(0, 3)]
    table = plan.forget(0, 2)
    assert table is not None
    assert table[:5].tolist() == [0, 0, 2, 1, 4]
    assert plan.places == [(0, 0)]
    table = plan.forget(1, 1)
    assert table is not None
    assert table[:4].tolist() == [0, 1, 0, 3]
    assert plan.forget(0, 0) is None
    assert plan.rows == {}


def test_a_full_store_keeps_every_second_frame_then_every_fourth() -> None:
    """The first always, the newest until the next comes, and what the caller has corrected."""
    plan = SupportPlan(4, 3, literal=False)
    kept = []
    for _ in range(9):
        plan.add(False)
        kept.append(sorted(plan.rows))
    assert kept[3:] == [
        [0, 1, 2, 3], [0, 2, 4], [0, 2, 4, 5], [0, 2, 4, 6], [0, 4, 7], [0, 4, 8],
    ]  # fmt: skip
    assert (plan.every, plan.frame_count) == (4, 9)
    assert len({*plan.rows.values()}) == len(plan.rows) and max(plan.rows.values()) < 4
    corrected = SupportPlan(6, 5, literal=False)
    for index in range(10):
        corrected.add(index == 3)
    assert (sorted(corrected.rows), corrected.prompted) == ([0, 3, 4, 8, 9], (3,))


def test_as_many_corrections_are_kept_as_leave_room_for_a_centre() -> None:
    for support, wanted in ((3, ()), (4, (5,)), (5, (3, 5)), (9, (3, 5))):
        plan = SupportPlan(8, support, literal=False)
        for index in range(7):
            plan.add(index in (0, 2, 3, 5))
            assert 0 not in plan.prompted  # the first frame stays anyway
        assert plan.prompted == wanted


def test_a_verified_sample_outweighs_the_older_ones() -> None:
    chosen = rules(learning_rate=0.1, verified_weight=2.0, verified_feeds=True)
    weight = np.array([0.05, 0.05, 0.0], np.float32)
    assert push_sample(chosen, weight, 2, verified=True) == 2
    assert weight.tolist() == pytest.approx([0.0225, 0.0225, 0.1])
    assert push_sample(chosen, weight, 3, verified=False) == 0
    assert weight.tolist() == pytest.approx([0.1, 0.02025, 0.09])


def test_frames_that_stay_keep_their_places_and_what_was_encoded_there() -> None:
    plan = SupportPlan(6, 3, literal=False)
    for _ in range(3):
        plan.add(False)
    assert plan.places == [(0, 0), (1, 0), (2, 0)]
    plan.places = [(0, 4), (1, 4), (2, 4)]
    plan.add(False)
    assert plan.places == [(0, 4), (3, 0), (2, 4)]
    plan.encode_anew()
    assert plan.places == [(0, 0), (3, 0), (2, 0)]
