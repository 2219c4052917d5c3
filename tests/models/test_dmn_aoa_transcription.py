"""The float64 transcription of DMN-AOA follows the paper."""

from __future__ import annotations

import dmn_aoa_transcription as dmn
import munet_transcription as munet
import numpy as np
import pytest
import torch
from dmn_aoa_transcription import Box, Weights
from random_weights import RandomWeights
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


def draw_weights(bottleneck: bool = False, feature: int = FEATURE) -> Weights:
    d = RandomWeights(0)
    for stage, channels in zip(BASE, d.resnet("base.backbone", 4, bottleneck), strict=True):
        d.conv(f"base.reduce{stage}.0", channels, BASE[stage], 1, bias=False)
        draw_group_norm(d, f"base.reduce{stage}.1", BASE[stage])
    d.conv("memory_head.key", feature + 1, KEY, 3)
    d.conv("memory_head.value", feature + 1, feature, 3)
    d.conv("query_head", feature, KEY, 3)
    for projector in ("template_projector", "proposal_projector"):
        d.conv(f"{projector}.0", feature, SHARED, 3)
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
    feature = sum(BASE[stage] for stage in stages)
    weights = draw_weights(bottleneck=True, feature=feature)
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


def test_memory_and_query_are_convolutions_with_the_time_added(weights: Weights) -> None:
    feature, mask = draw(FEATURE, 5, 5), draw(1, 5, 5, seed=1).sigmoid()
    later = feature + dmn.embed(4, FEATURE)[:, None, None]
    joined = torch.cat((later, mask))[None]
    for part, result in zip(("key", "value"), dmn.remember(weights, feature, mask, 4), strict=True):
        parts = (weights[f"memory_head.{part}.{x}"] for x in ("weight", "bias"))
        torch.testing.assert_close(result, functional.conv2d(joined, *parts, padding=1)[0])
    parts = (weights[f"query_head.{x}"] for x in ("weight", "bias"))
    wanted = functional.conv2d(later[None], *parts, padding=1)[0]
    torch.testing.assert_close(dmn.query(weights, feature, 4), wanted)


def test_norm_blocks_are_those_of_the_decoder(weights: Weights) -> None:
    for name, channels in (("refine.block4.fuse", BASE[4]), ("refine.block3.merge", REFINED)):
        x = y = feature = draw(1, channels, 5, 6)
        for i in (1, 2):
            y = functional.conv2d(y.relu(), weights[f"{name}.conv{i}.weight"], padding=1)
            norm = (weights[f"{name}.norm{i}.{part}"] for part in ("weight", "bias"))
            y = functional.group_norm(y, GROUPS, *norm)
        if channels != REFINED:
            parts = (weights[f"{name}.downsample.{part}"] for part in ("weight", "bias"))
            x = functional.conv2d(x, *parts, padding=1)
        result = dmn.norm_block(weights, name, feature[0], GROUPS)
        torch.testing.assert_close(result, (x + y)[0])


def test_refining_joins_one_convolution_over_everything(weights: Weights) -> None:
    levels = [
        {s: draw(channels, 2 ** (6 - s), 3 * 2 ** (4 - s), seed=i) for s, channels in sizes.items()}
        for i, sizes in enumerate((BASE, BASE, BASE, dict.fromkeys(BASE, 3)))
    ]
    x = torch.zeros(REFINED, 2, 3).double()
    for stage in (4, 3, 2):
        name = f"refine.block{stage}"
        kernels = [
            weights[f"{name}.{part}.weight"] for part in ("now", "first", "previous", "masks")
        ]
        joined = torch.cat([level[stage] for level in levels])[None]
        bias = weights[f"{name}.masks.bias"]
        y = functional.conv2d(joined, torch.cat(kernels, dim=1), bias, padding=1)
        norm = (weights[f"{name}.norm.{part}"] for part in ("weight", "bias"))
        y = functional.group_norm(y, GROUPS, *norm)
        y = dmn.norm_block(weights, f"{name}.fuse", y[0], GROUPS)
        if stage != 4:
            x = functional.interpolate(x[None], size=y.shape[1:], mode="bilinear")[0]
            y = dmn.norm_block(weights, f"{name}.merge", y + x, GROUPS)
        x = y
    kernel, bias = (weights[f"refine.predict.{part}"] for part in ("weight", "bias"))
    wanted = torch.einsum("chw,c->hw", x.relu(), kernel[1, :, 0, 0] - kernel[0, :, 0, 0])
    result = dmn.refine(weights, levels[0], levels[1], levels[2], levels[3], GROUPS)
    torch.testing.assert_close(result, wanted + bias[1] - bias[0])


def test_permutations_of_objects_and_proposals_permute_the_output(
    weights: Weights, clip: Clip, output: Output
) -> None:
    frames, masks, boxes, proposals = clip
    order = [2, 0, 1]
    moved = [boxes[j] for j in order]
    permuted = run(weights, (frames, [x.flip(0) for x in masks], moved, proposals[order]))
    torch.testing.assert_close(permuted[2], output[2].flip(0)[:, order])
    flipped = run(weights, (frames, [x.flip(0) for x in masks], [], proposals[:0]))
    alone = run(weights, (frames, masks, [], proposals[:0]))
    torch.testing.assert_close(flipped[1], alone[1].flip(0))


def test_coarse_masks_come_from_the_assignment(output: Output, clip: Clip) -> None:
    similarity, assignment = output[2:]
    np.testing.assert_array_equal(dmn.match(similarity), assignment)
    wanted = torch.einsum("om,mhw->ohw", assignment, clip[3]).clamp(0, 1)
    torch.testing.assert_close(output[0], functional.avg_pool2d(wanted, 4))
    torch.testing.assert_close(dmn.shrink(wanted, 16), functional.avg_pool2d(wanted, 16))


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
        result = run(weights, clip, **options)
        assert (result[2] - output[2]).abs().max() > 1e-4


def test_every_weight_is_heard(clip: Clip) -> None:
    """All but the bias of the memory's key, which adds a constant to a softmax."""
    learned = {n: t.double().requires_grad_() for n, t in draw_weights().items()}
    _, logits, similarity, _ = run(learned, clip, alpha=5.0)
    (logits.pow(2).sum() + similarity.pow(2).sum()).backward()
    silent = {n for n, t in learned.items() if t.grad is None or t.grad.abs().max() < 1e-9}
    assert silent <= {"memory_head.key.bias"}


def test_the_steps_are_joined_as_in_figure_2(weights: Weights, clip: Clip, output: Output) -> None:
    """For the second object, in frame 3."""
    frames, masks, boxes, _ = clip
    bases = [dmn.base_features(weights, frame[0], GROUPS) for frame in frames]

    def region(t: int, box: Box) -> Tensor:
        pyramid = ((bases[t][stage], stride) for stage, stride in ((2, 4), (3, 8), (4, 16)))
        return torch.cat([dmn.pool(x, box, stride, POOLED) for x, stride in pyramid])

    remembered = []
    for t in range(3):
        box = dmn.box_of(masks[t][1], None)
        mask = dmn.pool(masks[t][1:], box, 1, POOLED)
        remembered.append(dmn.remember(weights, region(t, box), mask, t))
    keys, values = zip(*remembered, strict=True)
    query = dmn.query(weights, region(3, box), 3)
    read = dmn.template(query, list(keys), list(values))
    template = dmn.project(weights, "template_projector", read, GROUPS)
    for j, proposed in enumerate(boxes):
        proposal = dmn.project(weights, "proposal_projector", region(3, proposed), GROUPS)
        similarity = dmn.score(template, dmn.align(template, proposal))
        torch.testing.assert_close(output[2][1, j], similarity)
    assigned = torch.einsum("m,mhw->hw", output[3][1], clip[3]).clamp(0, 1)
    shares = [dmn.reference_shares(weights, bases[3][4], bases[t][4], 100.0) for t in (0, 2)]
    moved: list[dict[int, Tensor]] = [{}, {}, {}]
    for stage, stride in ((2, 4), (3, 8), (4, 16)):
        shrunk = [
            functional.avg_pool2d(x[None], stride) for x in (assigned, masks[0][1], masks[2][1])
        ]
        for i, t in enumerate((0, 2)):
            moved[i][stage] = dmn.move_reference(shares[i], bases[t][stage], (3, 4))
            shrunk[1 + i] = dmn.move_reference(shares[i], shrunk[1 + i], (3, 4))
        moved[2][stage] = torch.cat(shrunk)
    torch.testing.assert_close(output[1][1], dmn.refine(weights, bases[3], *moved, GROUPS))
