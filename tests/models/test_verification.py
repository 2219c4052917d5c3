"""Which proposal verifies which track, and which are new (equation 10 of target-aware U-VOS)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch import Tensor

from vosengine.models.target_aware import network as target_aware
from vosengine.models.target_aware.network import TargetAware
from vosengine.proposals import Proposals, boxes_of
from vosengine.types import Geometry
from vosengine.zoo.registry import build


def scored(
    first: list[list[float]], now: list[list[float]], embeddings: list[list[float]], overlap: Tensor
) -> tuple[list[int | None], list[int]]:
    """Associate with the given embeddings and overlaps."""
    method = build("target_aware", tiny_config("target_aware", reid_channels=2))
    assert isinstance(method, TargetAware)
    state = method.start(Geometry.fit((64, 64), size=None, multiple=16), 4)
    state.object_count = len(first)
    state.first_embedding[: len(first)] = torch.tensor(first)
    tracks, count = overlap.shape
    masks, others = (torch.ones(n, 8, 8, dtype=torch.bool) for n in (tracks, count))
    proposals = Proposals(boxes_of(others), others, torch.ones(count), torch.tensor(embeddings))
    method.reid.forward = lambda frame, boxes: torch.tensor(now)[(overlap > 0.5).any(dim=1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_aware, "overlaps", lambda a, b: overlap)
        return method._associate(torch.zeros(1, 3, 8, 8), masks, proposals, state)


def test_the_scores_are_equation_10_in_float64() -> None:
    random = np.random.default_rng(0)
    now, first, embeddings = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (random.normal(size=(n, 5)) for n in (3, 3, 4))
    )
    tracks, proposals = np.array([0, 2]), np.array([0, 2])
    wanted = np.zeros((2, 2))
    for (i, track), (j, proposal) in product(enumerate(tracks), enumerate(proposals)):
        with_now = sum(embeddings[proposal, x] * now[track, x] for x in range(5))
        with_first = sum(embeddings[proposal, x] * first[track, x] for x in range(5))
        wanted[i, j] = with_now + with_first
    method = build("target_aware", tiny_config("target_aware", reid_channels=5))
    state = method.start(Geometry.fit((64, 64), size=None, multiple=16), 4)
    state.first_embedding[:3] = torch.from_numpy(first)
    tall = torch.arange(1, 8)[:, None, None] > torch.arange(8)[:, None]  # a height for each mask
    masks, others = (tall.expand(7, 8, 8)[part] for part in (slice(0, 3), slice(3, 7)))
    rows = torch.from_numpy(np.concatenate((now, embeddings))).float()
    method.reid.forward = lambda frame, boxes: rows[boxes[:, 3].long() - 1]
    frame = torch.zeros(1, 3, 8, 8)
    plain = Proposals(boxes_of(others), others, torch.ones(4))
    scores = method._compare(frame, masks, plain, state, tracks, proposals)
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    embedded = Proposals(plain.boxes, others, torch.ones(4), torch.from_numpy(embeddings).float())
    again = method._compare(frame, masks, embedded, state, tracks, proposals)
    np.testing.assert_allclose(again, scores, atol=1e-6)


def unit(degrees: float) -> list[float]:
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


@pytest.mark.parametrize(
    ("now", "first", "overlap", "verified"),
    [
        (70.0, 70.0, 0.9, True),  # 2 cos 70 = 0.684
        (73.0, 73.0, 0.9, False),  # 2 cos 73 = 0.585
        (0.0, 113.0, 0.9, True),  # 1 - 0.391 = 0.609
        (0.0, 114.0, 0.9, False),  # 1 - 0.407 = 0.593
        (0.0, 0.0, 0.51, True),
        (0.0, 0.0, 0.5, False),  # the overlap must be more than a half
    ],
)
def test_the_score_is_equation_10(now: float, first: float, overlap: float, verified: bool) -> None:
    matched, new = scored([unit(first)], [unit(now)], [unit(0)], torch.tensor([[overlap]]))
    assert matched == ([0] if verified else [None])
    assert new == []  # overlapped by 0.1 or more, so not new, verified or not


def test_the_match_is_one_to_one_best_first() -> None:
    """Proposal 0 matches both tracks, track 1 better; proposal 1 overlaps track 0 too."""
    overlap = torch.tensor([[0.6, 0.6], [0.6, 0.0]])
    tracks = [unit(40), unit(10)]
    matched, new = scored(tracks, tracks, [unit(0), unit(60)], overlap)
    assert matched == [1, 0]
    assert new == []


@pytest.mark.parametrize(("overlap", "new"), [(0.0, [0]), (0.09, [0]), (0.1, []), (0.5, [])])
def test_what_overlaps_nothing_is_new(overlap: float, new: list[int]) -> None:
    assert scored([unit(0)], [unit(0)], [unit(0)], torch.tensor([[overlap]])) == ([None], new)
