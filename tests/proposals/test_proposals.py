"""The best proposals, against a plain loop, and invalid proposals."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vosengine.errors import InputError
from vosengine.proposals import Proposals, best_of, boxes_of, check_proposals

SIZE = (20, 30)


def make_proposals(boxes: list[tuple[float, ...]], scores: list[float]) -> Proposals:
    """Proposals with full masks, numbered by their embeddings."""
    count = len(boxes)
    return Proposals(
        torch.tensor(boxes, dtype=torch.float32).view(count, 4),
        torch.ones(count, *SIZE, dtype=torch.bool),
        torch.tensor(scores),
        torch.arange(count)[:, None].float(),
    )


def numbers(proposals: Proposals) -> list[int]:
    assert proposals.embeddings is not None
    return [int(number) for number in proposals.embeddings[:, 0]]


def plain_suppression(
    proposals: Proposals, overlap: float, limit: int
) -> list[int]:  # the definition, pair by pair
    boxes, scores = proposals.boxes.tolist(), proposals.scores.tolist()
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        left, top, right, bottom = boxes[i]
        width = min(right, SIZE[1]) - max(left, 0)
        height = min(bottom, SIZE[0]) - max(top, 0)
        if width <= 0 or height <= 0 or not proposals.masks[i].any():
            continue
        if all(iou(boxes[i], boxes[j]) <= overlap for j in kept):
            kept.append(i)
    return kept[:limit]


def iou(a: list[float], b: list[float]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@st.composite
def crowds(draw: st.DrawFn) -> Proposals:
    """Boxes on a grid of whole pixels, some of them outside, with few scores, so that there are
    ties, and with some empty masks."""
    rows = st.tuples(
        st.integers(-6, 32), st.integers(-6, 22), st.integers(0, 12), st.integers(0, 12)
    )
    corners = draw(st.lists(rows, max_size=14))
    boxes = [(left, top, left + width, top + height) for left, top, width, height in corners]
    scores = [draw(st.sampled_from((0.2, 0.5, 0.9))) for _ in boxes]
    proposals = make_proposals(boxes, scores)
    for mask in proposals.masks:
        mask &= draw(st.sampled_from((True, True, True, False)))
    return proposals


@settings(max_examples=150, deadline=None)
@given(proposals=crowds(), overlap=st.sampled_from((0.0, 0.25, 0.4, 0.7)), limit=st.integers(1, 8))
@pytest.mark.slow
def test_suppression_is_that_of_a_plain_loop(
    proposals: Proposals, overlap: float, limit: int
) -> None:
    kept = best_of(proposals, overlap=overlap, limit=limit)
    assert numbers(kept) == plain_suppression(proposals, overlap, limit)


def test_what_is_kept_is_kept_whole_and_best_first() -> None:
    proposals = make_proposals([(0, 0, 9, 9), (10, 0, 19, 9), (1, 0, 10, 9)], [0.3, 0.5, 0.6])
    proposals.masks[:] = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) < 0.5
    kept = best_of(proposals)
    assert numbers(kept) == [2, 1]
    for name in ("boxes", "masks", "scores"):
        assert torch.equal(getattr(kept, name), getattr(proposals, name)[[2, 1]])
    assert best_of(replace(proposals, embeddings=None)).embeddings is None


def test_an_overlap_of_just_the_threshold_stays() -> None:
    proposals = make_proposals([(0, 0, 10, 10), (0, 0, 5, 10)], [0.9, 0.8])
    assert numbers(best_of(proposals, overlap=0.5)) == [0, 1]
    assert numbers(best_of(proposals, overlap=0.499)) == [0]


def test_none_stay_none() -> None:
    nothing = make_proposals([], [])
    assert len(best_of(nothing)) == 0
    check_proposals(best_of(nothing), SIZE)


def test_what_nothing_can_match_suppresses_nothing() -> None:
    """A better box with an empty mask, and one that only touches the frame, do not count."""
    proposals = make_proposals(
        [(0, 0, 9, 9), (0, 0, 9, 9), (30, 0, 40, 9), (31, 0, 40, 9), (4, 4, 4, 9)],
        [1, 0.5, 1, 1, 1],
    )
    proposals.masks[0] = False
    assert numbers(best_of(proposals)) == [1]


def test_five_hundred_are_fast() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 300, (500, 2))
    boxes = torch.from_numpy(np.hstack((corners, corners + random.uniform(5, 60, (500, 2)))))
    masks = torch.zeros(500, 120, 214, dtype=torch.bool)
    masks[:, 3, 5] = True
    scores = torch.from_numpy(random.random(500)).float()
    proposals = Proposals(boxes.float().clamp(max=119), masks, scores)
    best_of(proposals)
    start = time.perf_counter()
    kept = best_of(proposals, limit=500)
    assert time.perf_counter() - start < 0.5  # 10 ms where nothing else runs
    assert 30 < len(kept) < 500
    assert (kept.scores.diff() <= 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.tensor([[1.0, 2, 3, 4], [1, torch.nan, 3, 4]])}, "boxes: wanted finite"),
        ({"boxes": torch.tensor([[1.0, 2, torch.inf, 4]] * 2)}, "boxes: wanted finite"),
        ({"boxes": torch.tensor([[5.0, 2, 3, 4]] * 2)}, r"boxes: .*<= right.*\[5.0, 2.0, 3.0"),
        (
            {"boxes": torch.tensor([[1.0, 2, 3, 4], [1, 9, 3, 4]])},
            r"boxes: .*<= bottom.*\(number 1\)",
        ),
        ({"scores": torch.tensor([0.5, torch.nan])}, r"scores: wanted finite.*nan \(number 1\)"),
        ({"boxes": torch.zeros(2, 4).double()}, "boxes: wanted float32, given torch.float64"),
        ({"scores": torch.ones(2).long()}, "scores: wanted float32, given torch.int64"),
        ({"masks": torch.zeros(2, *SIZE, dtype=torch.uint8)}, "masks: wanted bool"),
        ({"masks": torch.zeros(2, 30, 20).bool()}, r"masks: wanted \[2, 20, 30\], given"),
        ({"scores": [0.5, 0.5]}, "scores: wanted a torch tensor, given list"),
        ({"embeddings": [0.5, 0.5]}, "embeddings: wanted a torch tensor, given list"),
        ({"embeddings": torch.ones(3, 4)}, r"embeddings: wanted \[2, E\], given \[3, 4\]"),
        ({"embeddings": torch.ones(2, 4).long()}, "embeddings: wanted float32, given torch.int64"),
        (
            {"embeddings": torch.tensor([[1.0, 0], [0, torch.nan]])},
            r"embeddings: wanted .* finite length, given nan \(number 1\)",
        ),
    ],
)
def test_what_is_no_proposals_is_refused(changes: dict[str, Any], message: str) -> None:
    good = make_proposals([(1, 2, 3, 4), (0, 0, 9, 9)], [0.9, 0.8])
    check_proposals(good, SIZE)
    with pytest.raises(InputError, match="^proposals: " + message):
        check_proposals(replace(good, **changes), SIZE)


def test_anything_else_is_refused_and_what_lies_outside_is_not() -> None:
    with pytest.raises(InputError, match="wanted Proposals, given dict"):
        check_proposals({"boxes": 1}, SIZE)  # type: ignore[arg-type]
    beyond = make_proposals([(-5, -5, 40, 40)], [0.5])
    check_proposals(beyond, SIZE)
    assert torch.equal(boxes_of(beyond.masks), torch.tensor([[0.0, 0, 30, 20]]))
