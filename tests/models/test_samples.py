"""Samples of appearance models: pixel weights, labels on the grid, and eviction."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from test_appearance import CELLS, CONFIG, draw, square
from torch import Tensor
from torch.nn import functional

from vosengine.models.target_aware.appearance import (
    GridLabels,
    Samples,
    pixel_weights,
    to_grid,
)

# Pixel weights and the reduction to the grid


@pytest.mark.parametrize("pixels", [1, 20, 60, 99])
def test_the_target_weighs_its_share_or_the_least_influence(pixels: int) -> None:
    label = torch.zeros(1, 10, 10)
    label.view(-1)[:pixels] = 1
    share, kept = pixels / 100, max(0.3, pixels / 100)
    weights = pixel_weights(label, 0.3)
    torch.testing.assert_close(weights[label > 0], torch.full((pixels,), kept / share))
    rest = (1 - kept) / (1 - share)
    torch.testing.assert_close(weights[label == 0], torch.full((100 - pixels,), rest))
    assert float((weights * label).sum() / weights.sum()) == pytest.approx(kept)


def test_a_label_without_target_or_without_background_has_finite_weights() -> None:
    labels = torch.stack((torch.zeros(6, 7), torch.ones(6, 7), torch.full((6, 7), 1e-9)))
    none, whole, faint = pixel_weights(labels, 0.1)
    torch.testing.assert_close(none, torch.full((6, 7), 0.9))
    assert (whole == 1).all()
    assert faint.isfinite().all()


def test_a_soft_pixel_weighs_between_target_and_background() -> None:
    label = torch.zeros(10, 10)
    label[0, :2] = torch.tensor([0.25, 0.75])  # q = 0.01
    weights = pixel_weights(label, 0.1)
    target, background = 10.0, 0.9 / 0.99
    wanted = torch.tensor([background + part * (target - background) for part in (0, 0.25, 0.75)])
    torch.testing.assert_close(weights[[1, 0, 0], [0, 0, 1]], wanted)


def test_the_error_on_the_grid_is_the_error_in_pixels_weighted() -> None:
    label, scores = square(30, 40, 12, 17).float(), draw(9, 9)
    weights = pixel_weights(label, 0.1).double()

    def in_pixels(scores: Tensor) -> Tensor:
        up = functional.interpolate(
            scores.double()[None, None], label.shape, mode="bilinear", align_corners=False
        )
        return (weights * (up[0, 0] - label).square()).sum()

    bands, targets = to_grid(label, 0.1, CELLS)
    product = torch.zeros(9, 9, dtype=torch.float64)
    for y, x, dy, dx in np.ndindex(9, 9, 3, 3):
        if 0 <= y + dy - 1 < 9 and 0 <= x + dx - 1 < 9:
            product[y, x] += bands[dy * 3 + dx, y, x].double() * scores[y + dy - 1, x + dx - 1]
    on_grid = (scores * (product - 2 * targets)).sum()
    wanted = in_pixels(scores) - in_pixels(torch.zeros(9, 9))
    torch.testing.assert_close(on_grid, wanted, rtol=1e-5, atol=0)


# Samples


def tiny_samples(**changes: Any) -> Samples:
    config = dataclasses.replace(CONFIG, target_channels=1, augmentations=1, **changes)
    return Samples(config, 2, (1, 1), torch.device("cpu"))


def tagged(*tags: float) -> tuple[Tensor, GridLabels]:
    """Samples with a single value."""
    tag = torch.tensor(tags)[:, None, None]
    return tag[:, None], GridLabels(tag[:, None].expand(-1, 9, 1, 1), tag)


def push(samples: Samples, slot: int, tag: float, verified: bool = False) -> None:
    features, labels = tagged(tag)
    samples.push(slot, features[0], GridLabels(*(x[0] for x in labels)), verified=verified)


def tags_of(samples: Samples, slot: int) -> list[int]:
    """The tags of a track's samples; all three banks must agree."""
    used = samples.filled[slot]
    features, bands, targets, _ = samples.read([slot], used)
    tags = targets.flatten()
    assert (features.flatten() == tags).all()
    assert (bands.flatten(2) == tags[None, :, None]).all()
    return [int(tag) for tag in tags]


@pytest.mark.parametrize("feeds", [False, True])
def test_weights_are_those_of_the_literal_recursion(feeds: bool) -> None:
    gamma = CONFIG.learning_rate
    samples = tiny_samples(samples=40, verified_feeds=feeds)
    samples.begin(1, *tagged(*range(5)))
    literal, last = [gamma / 5] * 5, gamma
    verdicts = np.random.default_rng(0).random(30) < 0.4
    assert 5 < verdicts.sum() < 20
    for verified in verdicts:
        grown = last / (1 - gamma)
        literal.append(grown * (2 if verified else 1))
        last = literal[-1] if feeds else grown
        push(samples, 1, 0, bool(verified))
        wanted = np.array(literal) / sum(literal)
        weights = samples.weights([1])[0].double().numpy()
        np.testing.assert_allclose(weights[: len(wanted)], wanted, rtol=1e-5)
        assert not weights[len(wanted) :].any()


@pytest.mark.parametrize("feeds", [False, True])
def test_five_thousand_samples_neither_overflow_nor_vanish(feeds: bool) -> None:
    samples = tiny_samples(samples=80, verified_feeds=feeds)
    samples.begin(0, *tagged(*range(5)))
    rng = np.random.default_rng(1)
    for number in range(5000):
        push(samples, 0, number, bool(rng.random() < 0.5))
    weights = samples.weights([0])[0]
    smallest = torch.finfo(torch.float32).tiny
    assert weights.min() > smallest and float(weights.sum()) == pytest.approx(1)
    recent = set(range(4985, 5000))
    assert recent <= set(tags_of(samples, 0))


def test_the_lightest_sample_makes_room_and_nothing_grows() -> None:
    samples = tiny_samples(samples=4)
    banks = ("features", "bands", "targets", "weight")
    storage = [getattr(samples, name).data_ptr() for name in banks]
    samples.begin(0, *tagged(10, 11))
    push(samples, 0, 12, verified=True)
    push(samples, 0, 13)
    assert tags_of(samples, 0) == [10, 11, 12, 13]
    push(samples, 0, 14)  # 10 and 11 are the lightest, and equal: the first goes
    push(samples, 0, 15)
    assert tags_of(samples, 0) == [14, 15, 12, 13]
    push(samples, 0, 16)  # 12 is older than 13, but verified: it weighs more
    assert tags_of(samples, 0) == [14, 15, 12, 16]
    for tag in range(17, 200):
        push(samples, 0, tag)
    assert sorted(tags_of(samples, 0)) == [196, 197, 198, 199] and samples.filled == [4, 0]
    assert storage == [getattr(samples, name).data_ptr() for name in banks]
    assert tags_of(samples, 1) == []


def test_a_new_track_starts_from_equal_shares_and_forgets_what_was_there() -> None:
    samples = tiny_samples()
    samples.begin(0, *tagged(1, 2, 3, 4, 5))
    push(samples, 0, 6)
    samples.begin(0, *tagged(7, 8))
    assert tags_of(samples, 0) == [7, 8]
    wanted = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(samples.weights([0])[0], wanted)
