"""The float64 DMN-AOA transcription obeys the paper before a model is held against it."""

from __future__ import annotations

import math

import dmn_aoa_transcription as dmn
import munet_transcription as munet
import numpy as np
import pytest
import torch
from dmn_aoa_transcription import Box, Weights
from random_weights import RandomWeights
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

GROUPS, KEY, SHARED, POOLED = 2, 6, 8, 5
BASE = {2: 4, 3: 4, 4: 8}
FEATURE = sum(BASE.values())
REFINED = 6  # channels of blocks 3 and 2; block 4 changes to them
HEIGHT, ACROSS = 48, 64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def draw_norm_block(d: RandomWeights, name: str, c_in: int, channels: int) -> None:
    for i, before in ((1, c_in), (2, channels)):
        d.conv(f"{name}.conv{i}", before, channels, 3, bias=False)
        draw_group_norm(d, f"{name}.norm{i}", channels)
    if c_in != channels:
        d.conv(f"{name}.downsample", c_in, channels, 3)


def draw_group_norm(d: RandomWeights, name: str, channels: int) -> None:
    d.named[f"{name}.weight"] = 1 + 0.1 * d.draw(channels)
    d.named[f"{name}.bias"] = 0.1 * d.draw(channels)


def draw_weights(bottleneck: bool = False) -> Weights:
    d = RandomWeights(0)
    for stage, channels in zip(BASE, d.resnet("base.backbone", 4, bottleneck), strict=True):
        d.conv(f"base.reduce{stage}.0", channels, BASE[stage], 1, bias=False)
        draw_group_norm(d, f"base.reduce{stage}.1", BASE[stage])
    d.conv("memory_head.key", FEATURE + 1, KEY, 3)
    d.conv("memory_head.value", FEATURE + 1, FEATURE, 3)
    d.conv("query_head", FEATURE, KEY, 3)
    for projector in ("template_projector", "proposal_projector"):
        d.conv(f"{projector}.0", FEATURE, SHARED, 3)
        draw_group_norm(d, f"{projector}.1", SHARED)
        d.conv(f"{projector}.3", SHARED, SHARED, 3)
    d.conv("refine.align", BASE[4], BASE[4], 1)
    for stage, width in ((4, BASE[4]), (3, REFINED), (2, REFINED)):
        name = f"refine.block{stage}"
        for part in ("now", "first", "previous"):
            d.conv(f"{name}.{part}", BASE[stage], width, 3, bias=False)
        d.conv(f"{name}.masks", 3, width, 3)
        draw_group_norm(d, f"{name}.norm", width)
        draw_norm_block(d, f"{name}.fuse", width, REFINED)
        if stage != 4:
            draw_norm_block(d, f"{name}.merge", REFINED, REFINED)
    d.conv("refine.predict", REFINED, 2, 1)
    return d.named


@pytest.fixture(scope="module")
def weights() -> Weights:
    return {name: tensor.double() for name, tensor in draw_weights().items()}


Clip = tuple[list[Tensor], list[Tensor], list[Box], Tensor]


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Four frames, soft masks of two objects for three of them, and three proposals."""
    frames = functional.interpolate(draw(4, 3, 6, 8), size=(HEIGHT, ACROSS), mode="bicubic")
    masks = []
    for t in range(3):
        mask = torch.zeros(2, HEIGHT, ACROSS).double()
        mask[0, 5 + t : 21 + t, 6 + 2 * t : 30 + 2 * t] = 0.9
        mask[1, 24 - t : 44 - t, 34 - t : 58 - t] = 0.8
        masks.append(mask)
    boxes = [(12.0, 8.0, 36.5, 24.0), (31.0, 21.0, 55.0, 40.5), (0.0, 30.0, 20.0, 48.0)]
    proposals = torch.zeros(3, HEIGHT, ACROSS).double()
    for proposal, (x0, y0, x1, y1) in zip(proposals, boxes, strict=True):
        proposal[int(y0) : int(y1), int(x0) : int(x1)] = 1
    return list(frames[:, None]), masks, boxes, proposals


Output = tuple[Tensor, Tensor, Tensor, Tensor]


def run(weights: Weights, clip: Clip, **options: object) -> Output:
    settings: dict[str, object] = {"norm_groups": GROUPS, "pooled": POOLED, **options}
    return dmn.transcribe(weights, *clip, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def output(weights: Weights, clip: Clip) -> Output:
    return run(weights, clip)


def test_shapes_and_that_something_is_said(output: Output) -> None:
    coarse, logits, similarity, assignment = output
    assert coarse.shape == logits.shape == (2, HEIGHT // 4, ACROSS // 4)
    assert similarity.shape == assignment.shape == (2, 3)
    assert all(x.dtype == torch.float64 and torch.isfinite(x).all() for x in output)
    assert logits.std() > 0.1 and (logits[0] - logits[1]).abs().max() > 0.1
    assert similarity.abs().max() <= 1 and similarity.std() > 0.01
    assert coarse.min() >= 0 and coarse.max() <= 1 and coarse.max() > 0.1


@pytest.mark.parametrize("stages", [(2, 3, 4), (4,)])
def test_bottlenecks_other_stages_and_the_real_size_work(
    clip: Clip, stages: tuple[int, ...]
) -> None:
    weights = draw_weights(bottleneck=True)
    if stages == (4,):
        for name in ("memory_head.key", "memory_head.value", "query_head",
                     "template_projector.0", "proposal_projector.0"):  # fmt: skip
            keep = BASE[4]
            whole = weights[f"{name}.weight"]
            mask = whole[:, FEATURE:]
            weights[f"{name}.weight"] = torch.cat((whole[:, :keep], mask), dim=1)
        for part in ("weight", "bias"):
            weights[f"memory_head.value.{part}"] = weights[f"memory_head.value.{part}"][: BASE[4]]
    once, again = (run(weights, clip, stages=stages, pooled=14) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))
    assert torch.isfinite(once[1]).all()


def test_base_features_are_a_normed_resnet(weights: Weights, clip: Clip) -> None:
    base = dmn.base_features(weights, clip[0][1][0], GROUPS)
    for stage, level in zip(
        BASE, munet.resnet18(weights, "base.backbone", clip[0][1]), strict=True
    ):
        reduced = functional.conv2d(level, weights[f"base.reduce{stage}.0.weight"])
        scale, shift = (weights[f"base.reduce{stage}.1.{part}"] for part in ("weight", "bias"))
        wanted = functional.group_norm(reduced, GROUPS, scale, shift)[0]
        torch.testing.assert_close(base[stage], wanted)


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
    found = dmn.pool(image, box, 2, size=2)
    samples = []
    for dy in (0.25, 0.75):
        for dx in (0.25, 0.75):
            # bin (1, 0): 3.5 / 2 high from 0.5 + 1.75, 2.8 / 2 wide from 1
            v, u = 2.25 + dy * 1.75, 1.0 + dx * 1.4
            i, j, fy, fx = int(v), int(u), v - int(v), u - int(u)
            corners = image[0, i : i + 2, j : j + 2]
            across = corners[:, 0] * (1 - fx) + corners[:, 1] * fx
            samples.append(float(across[0] * (1 - fy) + across[1] * fy))
    assert float(found[0, 1, 0]) == pytest.approx(sum(samples) / 4)


def test_pooling_repeats_the_edge_for_one_cell_and_is_zero_beyond() -> None:
    ones = torch.ones(1, 4, 4).double()
    assert dmn.pool(ones, (-4.0, 0.0, 12.0, 16.0), 4, size=4)[0, 1].tolist() == [0.5, 1, 1, 1]
    assert dmn.pool(ones, (20.0, 0.0, 30.0, 16.0), 4, size=2).eq(0).all()


def test_time_is_embedded_as_in_a_transformer() -> None:
    found = dmn.embed(7, 512)
    assert found.shape == (512,) and dmn.embed(0, 4).tolist() == [0, 1, 0, 1]
    for k in (0, 3, 255):
        angle = 7 / 10000 ** (2 * k / 512)
        assert found[2 * k : 2 * k + 2].tolist() == pytest.approx(
            [math.sin(angle), math.cos(angle)]
        )
    feature = draw(4, 2, 2)
    assert torch.equal(dmn.with_time(feature, 3)[:, 1, 0], feature[:, 1, 0] + dmn.embed(3, 4))


def test_memory_and_query_are_convolutions_with_the_time_added(weights: Weights) -> None:
    feature, mask = draw(FEATURE, 5, 5), draw(1, 5, 5, seed=1).sigmoid()
    later = feature + dmn.embed(4, FEATURE)[:, None, None]
    joined = torch.cat((later, mask))[None]
    for part, found in zip(("key", "value"), dmn.remember(weights, feature, mask, 4), strict=True):
        parts = (weights[f"memory_head.{part}.{x}"] for x in ("weight", "bias"))
        torch.testing.assert_close(found, functional.conv2d(joined, *parts, padding=1)[0])
    parts = (weights[f"query_head.{x}"] for x in ("weight", "bias"))
    wanted = functional.conv2d(later[None], *parts, padding=1)[0]
    torch.testing.assert_close(dmn.query(weights, feature, 4), wanted)


def test_templates_are_attention_over_all_of_the_memory() -> None:
    q, keys, values = draw(6, 3, 3), draw(2, 6, 3, 3, seed=1), draw(2, 10, 3, 3, seed=2)
    found = dmn.template(q, list(keys), list(values))
    k, v = (x.transpose(0, 1).flatten(1).T[None] for x in (keys, values))
    wanted = functional.scaled_dot_product_attention(q.flatten(1).T[None], k, v)[0].T
    torch.testing.assert_close(found, wanted.view(10, 3, 3))


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
    found = dmn.match(similarity)
    assert found.shape == (n, m)
    assert found.min(initial=0) > -0.02 and found.sum(axis=0).max(initial=0) < 1.02
    sums = found.sum(axis=1)  # the rest lies in the padding, if there is any
    np.testing.assert_allclose(sums, 1 if m > n else sums.clip(max=1), atol=0.02)


def test_clear_matches_are_almost_one_hot() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(0.3, 0.6, (3, 30))
    similarity[np.arange(3), [4, 20, 11]] = 0.9
    found = dmn.match(similarity)
    assert 0.98 < found[np.arange(3), [4, 20, 11]].min() < 0.99
    np.testing.assert_allclose(dmn.match(similarity[::-1, ::-1]), found[::-1, ::-1], atol=1e-12)


def test_a_start_that_is_not_the_best_is_left() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.15]])  # row 0 starts with column 0
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    assert columns.tolist() == [1, 0]
    assert dmn.match(similarity, outer=100)[rows, columns].min() > 0.99
    wanted = [0.607, 0.596]  # 0.015 per step: the 40 of the release do not finish such a change
    assert dmn.match(similarity)[rows, columns].tolist() == pytest.approx(wanted, abs=1e-3)


def test_one_step_of_one_row_by_hand() -> None:
    """Of 0.5 and 0.1 the first is taken; X - 0.1 C is (1.05, 0.01), whose first column exceeds 1 by
    0.05; the row (1, 0.01) is 0.01 too long."""
    found = dmn.match([[0.5, 0.1]], outer=1, inner=1)
    np.testing.assert_allclose(found, [[0.995, 0.005]])
    # The corrections (0.05, 0) and (0.005, 0.005) come back before the next projections.
    again = dmn.match([[0.5, 0.1]], outer=1, inner=2)
    np.testing.assert_allclose(again, [[0.9975, 0.0025]])


def test_coarse_masks_are_weighted_sums() -> None:
    masks, previous = draw(3, 4, 4).sigmoid(), draw(2, 4, 4, seed=1).sigmoid()
    assignment = torch.tensor([[0.5, 0.25, 0.25], [2.0, 2.0, -0.5]]).double()
    found = dmn.coarse(assignment, masks, previous)
    assert float(found[0, 1, 2]) == pytest.approx(float(assignment[0] @ masks[:, 1, 2]))
    assert found.max() == 1 and found.min() >= 0
    assert torch.equal(dmn.coarse(assignment[:, :0], masks[:0], previous), previous)


def test_shrinking_averages_areas() -> None:
    masks = draw(2, 32, 48)
    for stride in (4, 8, 16):
        wanted = functional.avg_pool2d(masks, stride)
        torch.testing.assert_close(dmn.shrink(masks, stride), wanted)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_references_move_in_blocks(side: int) -> None:
    height, width = 2, 3
    reference = draw(5, side * height, side * width)
    shares = draw(6, 6, seed=1).softmax(dim=1)
    found = dmn.move_reference(shares, reference, (height, width))
    wanted = torch.zeros(5, side, side).double()
    for k in range(6):
        y, x = side * (k // 3), side * (k % 3)
        wanted += shares[4, k] * reference[:, y : y + side, x : x + side]
    torch.testing.assert_close(found[:, side : 2 * side, side : 2 * side], wanted)  # block (1, 1)


def test_norm_blocks_are_those_of_the_decoder(weights: Weights) -> None:
    for name, channels in (("refine.block4.fuse", BASE[4]), ("refine.block3.merge", REFINED)):
        x = y = given = draw(1, channels, 5, 6)
        for i in (1, 2):
            y = functional.conv2d(y.relu(), weights[f"{name}.conv{i}.weight"], padding=1)
            norm = (weights[f"{name}.norm{i}.{part}"] for part in ("weight", "bias"))
            y = functional.group_norm(y, GROUPS, *norm)
        if channels != REFINED:
            parts = (weights[f"{name}.downsample.{part}"] for part in ("weight", "bias"))
            x = functional.conv2d(x, *parts, padding=1)
        found = dmn.norm_block(weights, name, given[0], GROUPS)
        torch.testing.assert_close(found, (x + y)[0])


def test_refining_joins_one_convolution_over_everything(weights: Weights) -> None:
    levels = [
        {s: draw(channels, 2 ** (6 - s), 3 * 2 ** (4 - s), seed=i) for s, channels in sizes.items()}
        for i, sizes in enumerate((BASE, BASE, BASE, dict.fromkeys(BASE, 3)))
    ]
    x = None
    for stage in (4, 3, 2):
        name = f"refine.block{stage}"
        kernels = [
            weights[f"{name}.{part}.weight"] for part in ("now", "first", "previous", "masks")
        ]
        joined = torch.cat([level[stage] for level in levels])[None]
        bias = weights[f"{name}.masks.bias"]
        y = functional.conv2d(joined, torch.cat(kernels, dim=1), bias, padding=1)
        norm = (weights[f"{name}.norm.{part}"] for part in ("weight", "bias"))
        y = dmn.norm_block(
            weights, f"{name}.fuse", functional.group_norm(y, GROUPS, *norm)[0], GROUPS
        )
        if x is not None:
            up = functional.interpolate(x[None], size=y.shape[1:], mode="bilinear")[0]
            y = dmn.norm_block(weights, f"{name}.merge", y + up, GROUPS)
        x = y
    assert x is not None
    kernel, bias = (weights[f"refine.predict.{part}"] for part in ("weight", "bias"))
    wanted = torch.einsum("chw,c->hw", x.relu(), kernel[1, :, 0, 0] - kernel[0, :, 0, 0])
    found = dmn.refine(weights, levels[0], levels[1], levels[2], levels[3], GROUPS)
    torch.testing.assert_close(found, wanted + bias[1] - bias[0])


def test_permutations_of_objects_and_proposals_permute_the_output(
    weights: Weights, clip: Clip, output: Output
) -> None:
    frames, masks, boxes, proposals = clip
    order = [2, 0, 1]
    moved = [boxes[j] for j in order]
    found = run(weights, (frames, [x.flip(0) for x in masks], moved, proposals[order]))
    torch.testing.assert_close(found[2], output[2].flip(0)[:, order])
    flipped = run(weights, (frames, [x.flip(0) for x in masks], [], proposals[:0]))
    alone = run(weights, (frames, masks, [], proposals[:0]))
    torch.testing.assert_close(flipped[1], alone[1].flip(0))


def test_coarse_masks_come_from_the_assignment(output: Output, clip: Clip) -> None:
    similarity, assignment = output[2:]
    np.testing.assert_array_equal(dmn.match(similarity), assignment)
    wanted = torch.einsum("om,mhw->ohw", assignment, clip[3]).clamp(0, 1)
    torch.testing.assert_close(output[0], functional.avg_pool2d(wanted, 4))


def test_without_proposals_the_previous_masks_are_refined(weights: Weights, clip: Clip) -> None:
    frames, masks, _, proposals = clip
    coarse, logits, similarity, assignment = run(weights, (frames, masks, [], proposals[:0]))
    torch.testing.assert_close(coarse, functional.avg_pool2d(masks[-1], 4))
    assert similarity.shape == assignment.shape == (2, 0) and torch.isfinite(logits).all()


def test_a_lost_object_keeps_its_box(weights: Weights, clip: Clip) -> None:
    frames, masks, boxes, proposals = clip
    lost = [masks[0], masks[1], masks[2] * torch.tensor([[[0.5]], [[1.0]]])]  # at most 0.45
    boxes_seen = dmn.box_of(lost[2][0], dmn.box_of(lost[1][0], None))
    assert boxes_seen == dmn.box_of(masks[1][0], None) != dmn.box_of(masks[2][0], None)
    assert torch.isfinite(run(weights, (frames, lost, boxes, proposals))[1]).all()


def test_the_memory_chooses_what_is_read(weights: Weights, clip: Clip, output: Output) -> None:
    frames, masks, boxes, proposals = clip
    noisy = [frames[0], 5 - frames[1], *frames[2:]]
    some = run(weights, clip, memory=[0, 2])
    same = run(weights, (noisy, masks, boxes, proposals), memory=[0, 2])
    assert all(torch.equal(*pair) for pair in zip(some, same, strict=True))
    assert (some[2] - output[2]).abs().max() > 1e-4
    every = run(weights, clip, memory=[0, 1, 2])
    assert torch.equal(every[2], output[2])


def test_an_object_begins_with_its_first_frame(
    weights: Weights, clip: Clip, output: Output
) -> None:
    frames, masks, boxes, proposals = clip
    late = run(weights, clip, first_frames=[0, 1])
    torch.testing.assert_close(late[2][0], output[2][0])
    assert (late[2][1] - output[2][1]).abs().max() > 1e-4
    short = run(weights, (frames[1:], masks[1:], boxes, proposals))
    torch.testing.assert_close(late[2][1], short[2][1])
    # Both references of the second object are frames 1 and 2, whatever its coarse mask.
    nothing: Clip = (frames, masks, [], proposals[:0])
    shorter: Clip = (frames[1:], masks[1:], [], proposals[:0])
    late, short = run(weights, nothing, first_frames=[0, 1]), run(weights, shorter)
    torch.testing.assert_close(late[1][1], short[1][1])
    torch.testing.assert_close(late[1][0], run(weights, nothing)[1][0])
    assert (late[1][0] - short[1][0]).abs().max() > 1e-3


def test_options_of_the_similarity_are_heard(weights: Weights, clip: Clip, output: Output) -> None:
    for options in ({"similarity": "flat"}, {"alpha": 1.0}):
        found = run(weights, clip, **options)
        assert (found[2] - output[2]).abs().max() > 1e-4


def test_every_weight_is_heard(clip: Clip) -> None:
    """All but the memory's key bias, which adds the same to all of a softmax."""
    learned = {n: t.double().requires_grad_() for n, t in draw_weights().items()}
    _, logits, similarity, _ = run(learned, clip, alpha=5.0)
    (logits.pow(2).sum() + similarity.pow(2).sum()).backward()
    silent = {n for n, t in learned.items() if t.grad is None or t.grad.abs().max() < 1e-9}
    assert silent <= {"memory_head.key.bias"}
