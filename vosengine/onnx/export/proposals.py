"""DMN-AOA as graphs, with D-Net's graphs as the default source of its proposals.

    encode    prepared -> b2, b3, b4, pooled (if regions are pooled from other maps), key
    segment   features, proposals, memory and reference frames -> logits
    remember  features, masks, memory -> updated memory, with this frame as the previous one

In `segment`, `alive` marks the rows with an object and `there` the rows with a proposal; these come
first. In dynamic graphs all rows are marked, but a frame without proposals has one unmarked row.

A first frame is a row of `first_keys` and `first_features`, shared by the objects that started in
it. After that frame the calling program copies it from `previous_keys` and `previous_features`;
`rows` holds the row of every object.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...config import MemoryConfig
from ...kernels import read_memory
from ...memory import Stored
from ...models.blocks import READ_LIMIT, to_positions
from ...models.dmn_aoa.network import DMNAOA, Candidates, DMNAOAFeatures
from ...models.dmn_aoa.refinement import BLOCKS, Base, mask_levels, shrink
from ...proposals import overlaps
from ...types import Geometry
from .discovery import Normalised, discovery_settings, discovery_verbs, load_dnet
from .regions import align_object, gather_cells, match_proposals, spread_cells
from .verb import Plan, Traced, Verb, VerbInput, encode_verb, memory_of, write_slot

POLICY = "proposals"


def features_of(method: DMNAOA, tensors: Sequence[torch.Tensor]) -> DMNAOAFeatures:
    """Convert the outputs of `encode` to the method's features."""
    *maps, key = tensors
    base = Base(*maps[:3])
    pooled = tuple(maps[3:]) or tuple(base)
    return DMNAOAFeatures(base, pooled, key, ())


def encode(method: DMNAOA, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """prepared -> features; key [1, Ca, h, w]."""
    base, pooled = method.base(prepared)
    aligned = method.refine.align(base.b4)
    maps = base if len(pooled) == len(base) else (*base, *pooled)
    return (*maps, functional.normalize(aligned, dim=1))


class Segment(nn.Module):
    """features, proposals, memory, references -> logits."""

    def __init__(self, method: DMNAOA, features: int) -> None:
        super().__init__()
        self.method = method
        self.features = features

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        now = features_of(self.method, tensors[: self.features])
        boxes, proposed, there, alive, frame_index, *memory = tensors[self.features :]
        keys, values, length, last, born, first_masks, masks, *references = memory
        stored = Stored(keys.flatten(1, 2), values.flatten(1, 2), length * keys.shape[2])
        state: Any = SimpleNamespace(
            read=lambda: stored,
            object_count=keys.shape[0],
            boxes=last,
            ages=lambda _: frame_index - born,
        )
        templates = self.method.templates(now, state)
        regions = self.method.pool(now.pooled, boxes)
        projected = to_positions(self.method.proposal_projector(regions))
        coarse = self._coarse(templates, Candidates(proposed, projected), there, alive, masks)
        return self._refined(now, coarse, masks, first_masks, references)

    def _coarse(
        self,
        templates: torch.Tensor,
        candidates: Candidates,
        there: torch.Tensor,
        alive: torch.Tensor,
        before: torch.Tensor,
    ) -> torch.Tensor:
        """`DMNAOA.match` of the marked objects and proposals: masks [O, h, w] at stride 4."""
        config, proposed = self.method.config, candidates.masks.float()
        similarity = align_object(
            templates, candidates.projected, alpha=config.sharpness, score=config.score
        )
        if config.overlap_weight:
            shared = overlaps(before > 0.5, shrink(proposed, 4) > 0.5)
            similarity = torch.lerp(similarity, shared, config.overlap_weight)
        assignment = match_proposals(
            similarity,
            alive,
            there,
            config.matching_steps,
            config.matching_rounds,
            config.matching_rate,
            config.assignment == "dmm",
        )
        coarse = (assignment @ proposed.flatten(1)).unflatten(1, proposed.shape[1:])
        return torch.where(there.any(), shrink(coarse.clamp(0, 1), 4), before)

    def _refined(
        self,
        now: DMNAOAFeatures,
        coarse: torch.Tensor,
        previous: torch.Tensor,
        first: torch.Tensor,
        references: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """`References.move` and `RefineNet`: logits [O, h, w] at stride 4."""
        rows, net = references[0], self.method.refine
        features, of_first, of_previous = self._moved(now.key, previous, first, references)
        planes = list(zip(mask_levels(coarse), of_first, of_previous, strict=True))
        joined = None
        for level, block in ((2, net.block4), (1, net.block3), (0, net.block2)):
            shared = block.now(now.base[level]) + block.previous(features[level][:1])
            own = block.first(features[level][1:])[rows]
            masks = torch.cat(planes[level], dim=1).to(shared.dtype)
            joined = block.join(shared + own, masks, joined)
        assert joined is not None
        logits = net.logits(joined)
        if self.method.config.read_masks:  # `carried`, at the logits' own size
            read = (of_first[0] + of_previous[0])[:, 0] / 2
            logits = logits + read.clamp(READ_LIMIT, 1 - READ_LIMIT).logit()
        return logits.float()

    def _moved(
        self,
        key: torch.Tensor,
        previous: torch.Tensor,
        first: torch.Tensor,
        references: Sequence[torch.Tensor],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Per level: features [1 + R, C, ., .] of the previous and the first frames, masks
        [O, 1, ., .] of every object's first frame, and of the previous one."""
        rows, keys, maps, first_keys, first_maps = references
        count, size, config = rows.shape[0], key.shape[2:], self.method.config
        columns = [self._columns(masks)[None] for masks in (previous, first)]
        columns[1] = columns[1].expand(first_keys.shape[0], -1, -1)
        features = to_positions(torch.cat((maps, first_maps)))
        moved = read_memory(
            to_positions(key)[0],
            to_positions(torch.cat((keys, first_keys))),
            torch.cat((features, torch.cat(columns)), dim=2),
            scale=config.sharpness,
            top_k=config.top_k,
        )
        aligned = moved.mT.unflatten(2, size)  # [1 + R, ., h, w]
        masks = aligned[:, features.shape[2] :].unflatten(1, (count, -1))  # [1 + R, O, 21, h, w]
        of_first = masks.flatten(0, 1)[(1 + rows) * count + torch.arange(count)]
        levels = self._levels(aligned[:, : features.shape[2]])
        return levels, self._planes(of_first), self._planes(masks[0])

    def _columns(self, masks: torch.Tensor) -> torch.Tensor:
        """[O, h, w] at stride 4 -> [P, 21 O], by cells of stride 16."""
        levels = mask_levels(masks.to(self.method.query_head.weight.dtype))
        return gathered(levels).flatten(2).flatten(0, 1).mT

    def _planes(self, columns: torch.Tensor) -> list[torch.Tensor]:
        """[O, 21, h, w] -> one map [O, 1, ., .] per level."""
        return spread(columns, (1, 1, 1))

    def _levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[R, 16 C2 + 4 C3 + C4, h, w] -> one map [R, C, ., .] per level."""
        return spread(x, self.method.config.base_channels)


def gathered(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Combine maps at strides 4, 8 and 16 into one at stride 16: [B, 16 C2 + 4 C3 + C4, h, w]."""
    fine, middle, coarse = levels
    return torch.cat((gather_cells(fine, 4), gather_cells(middle, 2), coarse), dim=1)


def spread(x: torch.Tensor, channels: Sequence[int]) -> list[torch.Tensor]:
    """The inverse of `gathered`."""
    widths = [count * side * side for count, side in zip(channels, BLOCKS, strict=True)]
    fine, middle, coarse = torch.split(x, widths, dim=1)
    return [spread_cells(fine, 4), spread_cells(middle, 2), coarse]


class Remember(nn.Module):
    """features, masks, memory -> updated memory."""

    def __init__(self, method: DMNAOA, memory: MemoryConfig, features: int) -> None:
        super().__init__()
        self.method = method
        self.memory = memory
        self.features = features

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        now = features_of(self.method, tensors[: self.features])
        masks, alive, prompted, frame_index, *held = tensors[self.features :]
        keys, values, length, boxes, born, first_masks, cursor = held
        method, memory = self.method, self.memory
        soft = masks[1:]
        boxes, shown = self._boxes(soft, torch.where(alive[:, None], boxes, _whole(soft)))
        fresh = prompted & ~alive
        born = torch.where(fresh, frame_index, born)
        regions = method.pool(now.pooled, boxes, planes=soft.to(now.base.b4.dtype))
        observed = method.memory_head(method.embed(regions, frame_index - born))
        key, value = (to_positions(x)[:, None] for x in observed)  # [O, 1, P, C]
        shown = shown & (alive | prompted)
        keep = prompted | (frame_index % memory.every == 0)
        bank = keys, values, length, cursor
        *stored, cursor = write_slot(memory, (key, value), bank, keep, shown)
        small = shrink(soft, 4)
        first = torch.where(fresh[:, None, None], small, first_masks)
        return *stored, boxes, born, first, small, cursor, now.key.clone(), gathered(now.base)

    def _boxes(self, soft: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`boxes_of` the pixels above 0.5, or the last boxes if none; and whether there are any."""
        sides = []
        for axis in (1, 2):  # [O, W], [O, H]
            there = soft.amax(dim=axis) > 0.5
            size = there.shape[1]
            place = torch.arange(size, device=soft.device)
            low = torch.where(there, place, size).amin(dim=1)
            sides.append((low, torch.where(there, place + 1, 0).amax(dim=1)))
        (left, right), (top, bottom) = sides
        shown = right > 0
        boxes = torch.stack((left, top, right, bottom), dim=1).float()
        return torch.where(shown[:, None], boxes, last), shown


def _whole(masks: torch.Tensor) -> torch.Tensor:
    """The box [4] of the whole frame of masks [O, H, W]."""
    height, width = (masks.new_full((1,), side) for side in masks.shape[1:])
    return torch.cat((0 * width, 0 * height, width, height))


def settings(method: DMNAOA, plan: Plan) -> dict[str, Any]:
    """Settings of the policy: the logits' stride, the memory, proposal selection, and D-Net."""
    config, memory = method.config, memory_of(method.config, plan)
    dnet, card = load_dnet(None, method.query_head.weight.dtype)
    return {
        "stride": 4,
        "every": memory.every,
        "frames": memory.max_frames,
        "max_proposals": config.max_proposals,
        "proposal_overlap": config.proposal_overlap,
        "discovery": {**discovery_settings(dnet.config), "weights": card.name},
    }


def verbs(method: DMNAOA, plan: Plan) -> list[Verb]:
    """The graphs encode, segment, remember, discover and guide."""
    single = method.config.region_levels == "res4"
    names = "b2", "b3", "b4", *(("pooled",) if single else ()), "key"
    frame = plan.frame(method.query_head.weight.dtype)
    encoder, features = encode_verb(plan, frame, Traced(method, encode), names)
    masks = plan.masks("found_masks")  # `masks` are the memory's
    marked = masks, plan.flags("alive"), plan.flags("prompted"), plan.frame_index()
    memory, references = _memory(method, plan), _references(method, plan)
    *held, previous, cursor = memory
    kept = [tensor.name for tensor in memory] + ["previous_keys", "previous_features"]
    return [
        encoder,
        Verb(
            "segment",
            Segment(method, len(features)),
            (*features, *_proposals(method, plan), *held, previous, *references),
            (("logits", ""),),
        ),
        Verb(
            "remember",
            Remember(method, memory_of(method.config, plan), len(features)),
            (*features, *marked, *held, cursor),
            tuple((f"{name}_out", f"state.{name}") for name in kept),
        ),
        *_discovery(method, plan),
    ]


def _memory(method: DMNAOA, plan: Plan) -> list[VerbInput]:
    """The memory of every object. Of the last two, `segment` takes only the previous masks and
    `remember` only the cursor."""
    config, objects, frames = method.config, plan.objects, plan.frames
    dtype = method.query_head.weight.dtype
    (height, width), cells = plan.cells, config.region_size**2
    bank, axes, rows = (objects, frames, cells), {0: "objects", 1: "frames"}, {0: "objects"}
    planes = {0: "objects", 1: "4*h", 2: "4*w"}
    boxes = torch.tensor([2.0, 3.0, 7.0 * width, 9.0 * height]).repeat(objects, 1)
    masks = torch.rand(objects, 4 * height, 4 * width)
    return [
        VerbInput("keys", "state.keys", torch.rand(*bank, config.key_channels).to(dtype), axes),
        VerbInput(
            "values", "state.values", torch.rand(*bank, config.value_channels).to(dtype), axes
        ),
        VerbInput("length", "state.length", torch.full((objects,), frames), rows),
        VerbInput("boxes", "state.boxes", boxes, rows),
        VerbInput("born", "state.born", torch.zeros(objects, dtype=torch.int64), rows),
        VerbInput("first_masks", "state.first_masks", masks.flip(2), planes),
        VerbInput("masks", "state.masks", masks, planes),
        VerbInput("cursor", "state.cursor", torch.full((objects,), frames - 1), rows),
    ]


def _references(method: DMNAOA, plan: Plan) -> list[VerbInput]:
    """The previous frame and the first frames, and the row of every object's first frame."""
    config, dtype = method.config, method.query_head.weight.dtype
    count = plan.objects if plan.static else plan.frames + 2
    widths = zip(config.base_channels, BLOCKS, strict=True)
    wide = sum(channels * side * side for channels, side in widths)
    own = torch.arange(plan.objects) % count
    inputs = [VerbInput("rows", "caller.rows", own, {0: "objects"})]
    for name, size in (("previous", 1), ("first", count)):
        axes = {2: "h", 3: "w"} | ({0: "references"} if name == "first" else {})
        keys = functional.normalize(torch.randn(size, config.base_channels[2], *plan.cells))
        inputs.append(VerbInput(f"{name}_keys", f"state.{name}_keys", keys.to(dtype), axes))
        features = torch.randn(size, wide, *plan.cells).to(dtype)
        inputs.append(VerbInput(f"{name}_features", f"state.{name}_features", features, axes))
    return inputs


def _proposals(method: DMNAOA, plan: Plan) -> list[VerbInput]:
    """The proposals and the other caller's inputs of `segment`."""
    count = method.config.max_proposals if plan.static else plan.objects + 5
    height, width = plan.network
    corners = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat((corners, corners + torch.rand(count, 2) * 16 + 8), dim=1)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    left, top, right, bottom = boxes.T[..., None, None]
    masks = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    there = torch.ones(count, dtype=torch.bool)
    return [
        VerbInput("proposed_boxes", "caller.boxes", boxes, {0: "proposals"}),
        VerbInput("proposed_masks", "caller.masks", masks, {0: "proposals", **plan.pixels(1)}),
        VerbInput("there", "caller.there", there, {0: "proposals"}),
        plan.flags("alive"),
        plan.frame_index(),
    ]


def _discovery(method: DMNAOA, plan: Plan) -> list[Verb]:
    """D-Net's graphs; if static, at D-Net's working size with the aspect ratio of the plan's."""
    dnet, _ = load_dnet(None, method.query_head.weight.dtype)
    cells = plan.cells
    if plan.static:
        cells = Geometry.fit(plan.network, size=dnet.config.size, multiple=16).cells(16)
    normalised = Normalised(method.config.mean, method.config.std)
    return discovery_verbs(dnet, cells, normalised=normalised)
