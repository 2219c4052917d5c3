"""DMN-AOA: against its transcription, and with few, many, odd and invalid proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from dmn_aoa_transcription import embed, transcribe
from torch import Tensor, nn

import vosengine.models.dmn_aoa.network as dmn_module
import vosengine.models.dmn_aoa.refinement as refinement_module
from vosengine.config import MemoryConfig
from vosengine.models.dmn_aoa.network import DMNAOA, positional_embedding
from vosengine.models.dmn_aoa.refinement import BLOCKS, References, from_blocks, to_blocks
from vosengine.proposals import Proposals, boxes_of
from vosengine.types import Geometry, Masks
from vosengine.zoo.registry import build

SIZE = 48, 64
GEOMETRY = Geometry.fit(SIZE, size=None, multiple=16)
ALL = MemoryConfig(policy="all", max_frames=9)


def tiny(**changes: Any) -> DMNAOA:
    """A tiny network whose norms are not the identity."""
    method = build("dmn_aoa", tiny_config("dmn_aoa", **changes))
    assert isinstance(method, DMNAOA)
    generator = torch.Generator().manual_seed(1)
    for layer in method.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(0.1 * torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
        elif isinstance(layer, nn.GroupNorm):
            layer.weight.copy_(1 + 0.2 * torch.randn(layer.num_channels, generator=generator))
            layer.bias.copy_(0.1 * torch.randn(layer.num_channels, generator=generator))
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            layer.bias.copy_(0.1 * torch.randn(layer.out_channels, generator=generator))
    return method


def frames_of(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, *SIZE, generator=generator).to(dtype) for _ in range(count)]


def soft_masks(objects: int, seed: int) -> Tensor:
    """[1 + O, H, W]: each object is likely in one corner of the frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1 + objects, 1, 6, 8, generator=generator)
    for slot in range(objects):
        y, x = divmod(slot, 3)
        coarse[1 + slot, 0, 3 * y : 3 * y + 3, 2 * x : 2 * x + 3] += 3
    return (2 * nn.functional.interpolate(coarse, SIZE, mode="bilinear")[:, 0]).softmax(dim=0)


def proposals_of(count: int, seed: int) -> Proposals:
    """Random rectangles, with scores that keep their order."""
    random = np.random.default_rng(seed)
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    for mask in masks:
        top, left = int(random.integers(0, 30)), int(random.integers(0, 40))
        mask[top : top + int(random.integers(6, 18)), left : left + int(random.integers(6, 24))] = 1
    return Proposals(boxes_of(masks), masks, torch.linspace(1, 0.1, count))


# Against the transcription

VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"score": "flat"}, {"similarity": "flat"}),
    ({"backbone": "resnet50", "width": 4}, {}),
    ({"sharpness": 3.0, "refine_channels": 16}, {"alpha": 3.0}),
]


@pytest.mark.parametrize(("changes", "options"), VARIANTS, ids=["-", "flat", "resnet50", "widths"])
@torch.no_grad()
def test_dmn_aoa_is_its_transcription(changes: dict[str, Any], options: dict[str, Any]) -> None:
    """Three objects, the last of which is added in the third frame; all frames are remembered."""
    method = tiny(memory=ALL, proposal_overlap=1.0, **changes).double()
    frames = frames_of(5, torch.float64)
    state = method.start(GEOMETRY, 4)
    planes = []
    for index in range(4):
        objects = 3 if index >= 2 else 2
        soft = soft_masks(3, index)[: 1 + objects].double()
        planes.append(torch.cat((soft[1:], soft.new_zeros(3 - objects, *SIZE))))
        method.remember([method.encode(frames[index])], Masks(soft), state)
    proposals = proposals_of(6, 1)
    result = method.segment([method.encode(frames[4], [proposals])], state)
    coarse, logits, similarity, assignment = transcribe(
        method.state_dict(),
        frames,
        planes,
        [tuple(box) for box in proposals.boxes.tolist()],
        proposals.masks.double(),
        norm_groups=4,
        pooled=7,
        first_frames=[0, 0, 2],
        **options,
    )
    assert similarity.std() > 0.005
    assert logits.std() > 0.05
    near: Callable[[Tensor, Tensor], None]
    near = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)  # noqa: E731
    near(result.aux.similarity, similarity)
    near(result.aux.assignment, assignment)
    torch.testing.assert_close(result.aux.coarse.double(), coarse, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.logits, logits, rtol=1e-5, atol=1e-5)


def test_the_positional_embedding_is_the_transformers() -> None:
    for delta in (0, 1, 17, 100_000):
        embedding = positional_embedding(torch.tensor([delta]), 24)[0]
        torch.testing.assert_close(embedding, embed(delta, 24), rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", BLOCKS)
def test_blocks_there_and_back(side: int) -> None:
    x = torch.arange(2 * 3 * 4 * side * 5 * side).float().view(2, 3, 4 * side, 5 * side)
    blocks = to_blocks(x, side)
    assert blocks.shape == (2, 20, side * side * 3)
    inside = x[1, :, 2 * side : 3 * side, 4 * side : 5 * side]  # the cell in row 2, column 4
    assert set(blocks[1, 14].tolist()) == set(inside.flatten().tolist())
    assert torch.equal(from_blocks(blocks, side, (4, 5)), x)


def test_a_reference_moves_where_its_key_is_and_takes_its_masks_along() -> None:
    """Aligning a frame with shuffled cells to the original restores their order."""
    generator = torch.Generator().manual_seed(0)
    cells, channels = (3, 4), (8, 8, 16)
    references = References(channels, cells, 2, torch.empty(0))
    key = nn.functional.normalize(torch.randn(1, 12, 16, generator=generator), dim=2)
    base = [
        torch.randn(1, c, 3 * s, 4 * s, generator=generator)
        for c, s in zip(channels, BLOCKS, strict=True)
    ]
    masks = torch.rand(2, 12, 16, generator=generator)
    order = torch.randperm(12, generator=generator)

    def shuffled(x: Tensor, side: int) -> Tensor:
        return from_blocks(to_blocks(x, side)[:, order], side, cells)

    mixed = [shuffled(x, side) for x, side in zip(base, BLOCKS, strict=True)]
    planes = shuffled(masks[:, None], 4)[:, 0]
    references.write(key[:, order], refinement_module.Base(*mixed), planes)
    moved = references.move(key[0], 100.0)
    # Of the closest cell alone that holds however softly all of them are weighed.
    closest = references.move(key[0], 0.01, top_k=1)
    torch.testing.assert_close(closest.features, moved.features, rtol=0, atol=2e-3)
    torch.testing.assert_close(closest.previous, moved.previous, rtol=0, atol=2e-3)
    for level in range(3):
        torch.testing.assert_close(moved.features[level][0], base[level][0], rtol=0, atol=1e-3)
        torch.testing.assert_close(moved.features[level][1], base[level][0], rtol=0, atol=1e-3)
    torch.testing.assert_close(moved.first[0][:, 0], masks, rtol=0, atol=1e-3)
    torch.testing.assert_close(moved.previous[0][:, 0], masks, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("poisoned_memory")
def test_first_frames_make_room_when_nobody_has_them_any_more() -> None:
    references = References((4, 4, 8), (1, 2), 4, torch.empty(0))

    def write(number: int, count: int) -> None:
        base = [
            torch.full((1, c, s, 2 * s), float(number))
            for c, s in zip((4, 4, 8), BLOCKS, strict=True)
        ]
        key = torch.full((1, 2, 8), 8**-0.5)
        references.write(
            key, refinement_module.Base(*base), torch.full((count, 4, 8), float(number))
        )

    def firsts() -> list[float]:
        moved = references.move(torch.full((2, 8), 8**-0.5), 1.0)
        numbers = [float(moved.features[0][row].mean()) for row in moved.rows]
        for slot, number in enumerate(numbers):
            assert float(moved.first[2][slot].mean()) == pytest.approx(number)
        return numbers

    for number, count in ((1, 2), (2, 2), (3, 3), (4, 4)):
        write(number, count)
    assert firsts() == pytest.approx([1, 1, 3, 4])
    references.forget(0)  # frame 1 is still needed
    assert firsts() == pytest.approx([4, 1, 3])
    references.forget(2)  # frame 3 is not
    assert firsts() == pytest.approx([4, 1])
    assert references.row_count == 3
    write(5, 3)
    assert firsts() == pytest.approx([4, 1, 5])
    write(6, 4)
    assert firsts() == pytest.approx([4, 1, 5, 6])


@torch.no_grad()
def test_the_last_object_takes_its_age_and_place_along() -> None:
    method = tiny()
    state = method.start(GEOMETRY, 4)
    for index, frame in enumerate(frames_of(3)):
        method.remember([method.encode(frame)], Masks(soft_masks(1 + index, index)), state)
    assert state.born[:3].tolist() == [0, 1, 2]
    box, masks = state.boxes[2].clone(), state.masks[2].clone()
    assert not torch.equal(box, state.boxes[0])
    state.forget(0)
    assert state.born[:2].tolist() == [2, 1]
    assert state.ages(2).tolist() == [1, 2]
    assert torch.equal(state.boxes[0], box)
    assert torch.equal(state.masks[0], masks)


# Proposals


def segmented(proposals: Proposals | None, **changes: Any) -> Any:
    method = tiny(**changes)
    state = method.start(GEOMETRY, 4)
    frames = frames_of(2)
    method.remember([method.encode(frames[0])], Masks(soft_masks(3, 0)), state)
    batch = None if proposals is None else [proposals]
    return method.segment([method.encode(frames[1], batch)], state)


@torch.no_grad()
def test_without_proposals_the_frame_before_stands_in() -> None:
    for nothing in (None, proposals_of(0, 0)):
        result = segmented(nothing)
        wanted = nn.functional.avg_pool2d(soft_masks(3, 0)[1:, None], 4)[:, 0]
        torch.testing.assert_close(result.aux.coarse, wanted)
        assert result.aux.assignment.shape == (3, 0)
        assert result.logits.isfinite().all()


@torch.no_grad()
def test_of_five_hundred_proposals_the_best_thirty_are_looked_at() -> None:
    many = proposals_of(500, 2)
    result = segmented(many, proposal_overlap=1.0)
    assert result.aux.similarity.shape == (3, 30)
    few = Proposals(many.boxes[:30], many.masks[:30], many.scores[:30])
    torch.testing.assert_close(
        result.aux.similarity, segmented(few, proposal_overlap=1.0).aux.similarity
    )
    apart = segmented(many)  # boxes that overlap by more than 0.4 say the same: others come up
    assert apart.aux.similarity.shape == (3, 30)
    assert not torch.allclose(apart.aux.similarity, result.aux.similarity)


@torch.no_grad()
def test_similarity_does_not_depend_on_the_order_of_the_proposals() -> None:
    original = proposals_of(8, 3)
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    mixed = Proposals(original.boxes[order], original.masks[order], torch.linspace(1, 0.1, 8))
    one, other = (
        segmented(proposals, proposal_overlap=1.0).aux.similarity for proposals in (original, mixed)
    )
    torch.testing.assert_close(one[:, order], other, rtol=0, atol=1e-5)
    assert one.std(dim=1).min() > 1e-4


@torch.no_grad()
def test_odd_proposals_do_no_harm() -> None:
    """The whole frame, one pixel, a duplicate, one outside, one without area, one empty."""
    masks = torch.zeros(6, *SIZE, dtype=torch.bool)
    masks[0] = True
    masks[1, 20, 30] = True
    masks[2:4, 5:20, 5:30] = True
    masks[4, 3:9, 3:9] = True
    boxes = boxes_of(masks)
    boxes[3] = torch.tensor([200.0, 200.0, 260.0, 300.0])
    boxes[4] = torch.tensor([5.0, 5.0, 5.0, 20.0])
    result = segmented(Proposals(boxes, masks, torch.linspace(1, 0.5, 6)))
    assert result.aux.similarity.shape == (3, 3)  # the last three cannot be matched
    assert result.logits.isfinite().all()
    twice = Proposals(boxes_of(masks[2:4]), masks[2:4], torch.tensor([0.9, 0.9]))
    result = segmented(twice, proposal_overlap=1.0)
    assert result.logits.isfinite().all()
    torch.testing.assert_close(result.aux.similarity[:, 0], result.aux.similarity[:, 1])


@torch.no_grad()
def test_the_overlap_with_the_mask_before_may_count_too() -> None:
    soft = soft_masks(3, 0)[1:]
    masks = (soft > 0.5).flip(0)
    result = segmented(
        Proposals(boxes_of(masks), masks, torch.tensor([0.9, 0.8, 0.7])),
        overlap_weight=1.0,
        proposal_overlap=1.0,
    )
    assert result.aux.assignment.argmax(dim=1).tolist() == [2, 1, 0]
    assert result.aux.similarity.amax() <= 1


@torch.no_grad()
def test_regions_from_res4_alone_have_as_many_channels() -> None:
    method = tiny(region_levels="res4")
    features = method.encode(frames_of(1)[0], [proposals_of(2, 0)])
    assert [tuple(level.shape) for level in features.pooled] == [(1, 32, 3, 4)]
    assert features.candidates[0].projected.shape == (2, 49, 16)
    assert segmented(proposals_of(2, 0), region_levels="res4").logits.isfinite().all()


# Many objects in one pass


@torch.no_grad()
def test_everything_before_refinenet_is_one_call_for_all_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for module, names in (
        (dmn_module, ("pool_regions", "read_memory", "align_object", "match_proposals")),
        (refinement_module, ("read_memory",)),
    ):
        for name in names:
            real = getattr(module, name)

            def spy(*args: Any, name: str = name, real: Any = real, **options: Any) -> Any:
                calls.append(name)
                return real(*args, **options)

            monkeypatch.setattr(module, name, spy)
    method = tiny()
    state = method.start(GEOMETRY, 6)
    frames = frames_of(2)
    method.remember([method.encode(frames[0])], Masks(soft_masks(5, 0)), state)
    seen = [method.encode(frames[1], [proposals_of(7, 0)])]
    calls.clear()
    method.segment(seen, state)
    assert sorted(calls) == [
        "align_object",
        "match_proposals",
        "pool_regions",
        "read_memory",
        "read_memory",
    ]


def test_untrained_heads_that_are_compared_start_alike() -> None:
    method = build("dmn_aoa", tiny_config("dmn_aoa"))
    assert isinstance(method, DMNAOA)
    regions = torch.randn(2, 32, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        key, value = method.memory_head(torch.cat((regions, torch.zeros(2, 1, 7, 7)), dim=1))
        torch.testing.assert_close(value, regions)
        torch.testing.assert_close(key, method.query_head(regions))
        one, other = method.template_projector(regions), method.proposal_projector(regions)
    assert torch.equal(one, other)


def test_proposals_of_a_batch_belong_to_their_frames() -> None:
    method = tiny()
    frames = frames_of(3)
    proposals = [proposals_of(2, 0), proposals_of(0, 0), proposals_of(3, 1)]
    together = method.encode(torch.cat(frames), proposals).candidates
    for index, frame in enumerate(frames):
        (alone,) = method.encode(frame, [proposals[index]]).candidates
        for batch, one in zip(together[index], alone, strict=True):
            torch.testing.assert_close(batch, one, rtol=1e-4, atol=1e-4)
