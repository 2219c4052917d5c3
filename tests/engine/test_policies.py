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
    asked = []

    def compare(tracks: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        asked.append((tracks.tolist(), proposals.tolist()))
        return np.full((len(tracks), len(proposals)), 0.61, np.float32)

    assert associate(rules(), overlap, compare) == ([0, None], [2])
    assert asked == [([0], [0])]


@pytest.mark.parametrize("birth_overlap", [0.0, 0.1])
def test_without_tracks_every_proposal_is_new(birth_overlap: float) -> None:
    found = associate(rules(birth_overlap=birth_overlap), np.zeros((0, 3), np.float32), None)  # type: ignore[arg-type]
    assert found == ([], [0, 1, 2])
    assert associate(rules(), np.zeros((2, 0), np.float32), None) == ([None, None], [])  # type: ignore[arg-type]


def test_births_are_sure_apart_and_few() -> None:
    scores = np.array([0.9, 0.2, 0.8, 0.7, 0.6], np.float32)
    overlap = np.eye(5, dtype=np.float32)
    overlap[2, 0] = overlap[0, 2] = 0.1  # an object that is seen twice
    assert births(rules(birth_score=0.3), scores, overlap, 9) == [0, 3, 4]
    assert births(rules(birth_score=0.3), scores, overlap, 2) == [0, 3]
    assert births(rules(), scores, overlap, 0) == []


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
