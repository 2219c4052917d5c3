"""The steps of the DMN-AOA transcription alone: pooling, reading, aligning, matching, moving."""

from __future__ import annotations

import math

import dmn_aoa_transcription as dmn
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_boxes_are_tight_and_the_last_one_stays() -> None:
    mask = torch.zeros(10, 12)
    mask[3:7, 2:5], mask[9, 11] = 0.6, 0.5
    assert dmn.box_of(mask, None) == (2.0, 3.0, 5.0, 7.0)
    assert dmn.box_of(mask * 0, (1.0, 2.0, 3.0, 4.0)) == (1.0, 2.0, 3.0, 4.0)
    with pytest.raises(ValueError, match="first mask is empty"):
        dmn.box_of(mask * 0, None)


def test_pooling_reads_a_ramp_at_the_centres_of_its_bins() -> None:
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    ramps = torch.stack((y + 0.5, x + 0.5)).double() * 4  # the place of a cell's centre in pixels
    box = (9.0, 6.0, 51.0, 41.0)
    pooled = dmn.pool(ramps, box, 4, size=7)
    torch.testing.assert_close(pooled[0, :, 3], 6 + 5 * (torch.arange(7) + 0.5).double())
    torch.testing.assert_close(pooled[1, 3, :], 9 + 6 * (torch.arange(7) + 0.5).double())
    assert dmn.pool(ramps, box, 4).shape == (2, 14, 14)


def test_pooling_is_the_mean_of_four_bilinear_samples_per_bin() -> None:
    image = draw(1, 6, 7)
    box = (3.0, 2.0, 8.6, 9.0)  # cells of 2 pixels: 1 .. 3.8 and 0.5 .. 4 in the map's own frame
    pooled = dmn.pool(image, box, 2, size=2)
    samples = []
    for dy in (0.25, 0.75):
        for dx in (0.25, 0.75):
            # bin (1, 0): 3.5 / 2 high from 0.5 + 1.75, 2.8 / 2 wide from 1
            v, u = 2.25 + dy * 1.75, 1.0 + dx * 1.4
            i, j, fy, fx = int(v), int(u), v - int(v), u - int(u)
            corners = image[0, i : i + 2, j : j + 2]
            across = corners[:, 0] * (1 - fx) + corners[:, 1] * fx
            samples.append(float(across[0] * (1 - fy) + across[1] * fy))
    assert float(pooled[0, 1, 0]) == pytest.approx(sum(samples) / 4)


def test_pooling_repeats_the_edge_for_one_cell_and_is_zero_beyond() -> None:
    ones = torch.ones(1, 4, 4).double()
    assert dmn.pool(ones, (-4.0, 0.0, 12.0, 16.0), 4, size=4)[0, 1].tolist() == [0.5, 1, 1, 1]
    assert dmn.pool(ones, (20.0, 0.0, 30.0, 16.0), 4, size=2).eq(0).all()


def test_time_is_embedded_as_in_a_transformer() -> None:
    embedding = dmn.embed(7, 512)
    assert embedding.shape == (512,) and dmn.embed(0, 4).tolist() == [0, 1, 0, 1]
    for k in (0, 3, 255):
        angle = 7 / 10000 ** (2 * k / 512)
        assert embedding[2 * k : 2 * k + 2].tolist() == pytest.approx(
            [math.sin(angle), math.cos(angle)]
        )
    feature = draw(4, 2, 2)
    assert torch.equal(dmn.with_time(feature, 3)[:, 1, 0], feature[:, 1, 0] + dmn.embed(3, 4))


def test_templates_are_attention_over_all_of_the_memory() -> None:
    q, keys, values = draw(6, 3, 3), draw(2, 6, 3, 3, seed=1), draw(2, 10, 3, 3, seed=2)
    result = dmn.template(q, list(keys), list(values))
    k, v = (x.transpose(0, 1).flatten(1).T[None] for x in (keys, values))
    wanted = functional.scaled_dot_product_attention(q.flatten(1).T[None], k, v)[0].T
    torch.testing.assert_close(result, wanted.view(10, 3, 3))


def test_alignment_undoes_a_permutation() -> None:
    target = draw(16, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = 3 * target.flatten(1)[:, order].view(16, 4, 4)
    aligned = dmn.align(target, shuffled)
    torch.testing.assert_close(aligned, 3 * target, rtol=1e-6, atol=1e-6)
    assert float(dmn.score(target, aligned)) == pytest.approx(1)
    assert float(dmn.score(target, shuffled)) < 0.5
    shares = dmn.correspondences(target, shuffled, 5.0)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(16).double())
    cos = functional.cosine_similarity(target[:, 1, 2], shuffled[:, 3, 0], dim=0)
    other = functional.cosine_similarity(target[:, 1, 2], shuffled[:, 0, 1], dim=0)
    torch.testing.assert_close((shares[6, 12] / shares[6, 1]).log(), 5 * (cos - other))


def test_scores_are_mean_cosines_or_one_of_the_whole() -> None:
    a, b = draw(5, 3, 4), draw(5, 3, 4, seed=1)
    mean = functional.cosine_similarity(a, b, dim=0).mean()
    torch.testing.assert_close(dmn.score(a, b), mean)
    whole = functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    torch.testing.assert_close(dmn.score(a, b, "flat"), whole)


@pytest.mark.parametrize(("n", "m"), [(3, 30), (1, 5), (4, 4), (5, 2), (2, 0)])
def test_assignments_keep_to_the_constraints(n: int, m: int) -> None:
    similarity = np.random.default_rng(n).uniform(0.3, 0.6, (n, m))
    assignment = dmn.match(similarity)
    assert assignment.shape == (n, m)
    assert assignment.min(initial=0) > -0.02 and assignment.sum(axis=0).max(initial=0) < 1.02
    sums = assignment.sum(axis=1)  # the rest lies in the padding, if there is any
    np.testing.assert_allclose(sums, 1 if m > n else sums.clip(max=1), atol=0.02)


def test_clear_matches_are_almost_one_hot() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(0.3, 0.6, (3, 30))
    similarity[np.arange(3), [4, 20, 11]] = 0.9
    assignment = dmn.match(similarity)
    assert 0.98 < assignment[np.arange(3), [4, 20, 11]].min() < 0.99
    np.testing.assert_allclose(
        dmn.match(similarity[::-1, ::-1]), assignment[::-1, ::-1], atol=1e-12
    )


def test_a_start_that_is_not_the_best_is_left() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.15]])  # row 0 starts with column 0
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    assert columns.tolist() == [1, 0]
    assert dmn.match(similarity, outer=100)[rows, columns].min() > 0.99
    wanted = [0.607, 0.596]  # 0.015 per step: the 40 of the release do not finish such a change
    assert dmn.match(similarity)[rows, columns].tolist() == pytest.approx(wanted, abs=1e-3)


def test_rows_start_with_the_cheapest_column_that_they_won() -> None:
    similarity = [[-0.2, -0.9, -0.3], [-0.4, -0.5, -0.6]]
    assert dmn.match(similarity, outer=0).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_few_proposals_leave_room_for_nothing() -> None:
    """As many proposals as objects are joined by one more of similarity 0."""
    assignment = dmn.match([[0.9, 0.3], [-0.5, -0.4]])
    assert assignment[0, 0] > 0.95 and np.abs(assignment[1]).max() < 0.05


def test_one_step_of_one_row_by_hand() -> None:
    """Of 0.5 and 0.1 the first is taken; X - 0.1 C is (1.05, 0.01), whose first column exceeds 1 by
    0.05; the row (1, 0.01) is 0.01 too long."""
    assignment = dmn.match([[0.5, 0.1]], outer=1, inner=1)
    np.testing.assert_allclose(assignment, [[0.995, 0.005]])
    # The corrections (0.05, 0) and (0.005, 0.005) come back before the next projections.
    again = dmn.match([[0.5, 0.1]], outer=1, inner=2)
    np.testing.assert_allclose(again, [[0.9975, 0.0025]])


def test_coarse_masks_are_weighted_sums() -> None:
    masks, previous = draw(3, 4, 4).sigmoid(), draw(2, 4, 4, seed=1).sigmoid()
    assignment = torch.tensor([[0.5, 0.25, 0.25], [2.0, 2.0, -0.5]]).double()
    coarse = dmn.coarse(assignment, masks, previous)
    assert float(coarse[0, 1, 2]) == pytest.approx(float(assignment[0] @ masks[:, 1, 2]))
    assert coarse.max() == 1 and coarse.min() >= 0
    assert torch.equal(dmn.coarse(assignment[:, :0], masks[:0], previous), previous)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_references_move_in_blocks(side: int) -> None:
    height, width = 2, 3
    reference = draw(5, side * height, side * width)
    shares = draw(6, 6, seed=1).softmax(dim=1)
    moved = dmn.move_reference(shares, reference, (height, width))
    wanted = torch.zeros(5, side, side).double()
    for k in range(6):
        y, x = side * (k // 3), side * (k % 3)
        wanted += shares[4, k] * reference[:, y : y + side, x : x + side]
    torch.testing.assert_close(moved[:, side : 2 * side, side : 2 * side], wanted)  # block (1, 1)
