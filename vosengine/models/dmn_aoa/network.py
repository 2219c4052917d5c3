"""DMN-AOA: object templates from a dynamic memory, matched with aligned proposals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from ...config import DMNAOAConfig, MemoryConfig
from ...kernels import align_object, match_proposals, pool_regions, read_memory
from ...kernels.spans import spanned
from ...memory import PagePools
from ...proposals import Proposals, best_of, boxes_of, overlaps
from ...types import Geometry, Masks, Scores
from ..backbone import initialise
from ..blocks import KeyValue, MatchingState, carried, conv3, to_positions
from ..efficientnet import EfficientNetLite
from ..encoder import make_encoder
from ..method import Method, tensors_under
from .refinement import Base, NormedResBlock, References, RefineNet, shrink

STRIDES = (4, 8, 16)


class Candidates(NamedTuple):
    """Proposals of one frame after selection, best first."""

    masks: torch.Tensor  # [M, H, W] bool
    projected: torch.Tensor  # [M, P, Cd], P' of section 3.3


class DMNAOAFeatures(NamedTuple):
    """Per-frame features of DMN-AOA, independent of objects."""

    base: Base
    pooled: tuple[torch.Tensor, ...]  # maps that regions are pooled from, finest first
    key: torch.Tensor  # [B, P, Ca], query key of the reference alignment
    candidates: tuple[Candidates, ...]  # one per frame of the batch


class Matching(NamedTuple):
    """Result of the matching stage, before refinement: O objects, M proposals."""

    similarity: torch.Tensor  # [O, M]
    assignment: torch.Tensor  # [O, M], A of section 3.1
    coarse: torch.Tensor  # [O, H / 4, W / 4] in 0..1


class Observed(NamedTuple):
    """Result of `observe`: per-object and per-frame tensors to store."""

    key: torch.Tensor  # [O, Ck, s, s]
    value: torch.Tensor  # [O, Cv, s, s]
    visible: torch.Tensor  # [O] bool, the object's mask is not empty
    boxes: torch.Tensor  # [O, 4]
    masks: torch.Tensor  # [O, H / 4, W / 4] in 0..1
    frame_key: torch.Tensor  # [1, P, Ca]
    base: Base


class BaseFeatures(nn.Module):
    """Backbone with a 1x1 bottleneck on res2, res3 and res4 (section 3.1)."""

    def __init__(self, config: DMNAOAConfig) -> None:
        super().__init__()
        self.backbone = make_encoder(config.backbone, config.width, norm=config.norm)
        groups, stages = config.norm_groups, self.backbone.channels
        self.reduce2, self.reduce3, self.reduce4 = (
            bottleneck(stage, channels, groups)
            for stage, channels in zip(stages, config.base_channels, strict=True)
        )
        single = config.region_levels == "res4"
        self.regions = bottleneck(stages[2], config.value_channels, groups) if single else None

    @property
    def reductions(self) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
        """The bottlenecks on res2, res3 and res4."""
        return self.reduce2, self.reduce3, self.reduce4

    def forward(self, frames: torch.Tensor) -> tuple[Base, tuple[torch.Tensor, ...]]:
        """frames [B, 3, H, W] -> base features, and the maps that regions are pooled from."""
        pyramid = self.backbone(frames)
        base = Base(self.reduce2(pyramid.r2), self.reduce3(pyramid.r3), self.reduce4(pyramid.r4))
        return base, tuple(base) if self.regions is None else (self.regions(pyramid.r4),)


def bottleneck(channels_in: int, channels: int, groups: int) -> nn.Sequential:
    """1x1 convolution without bias, then group norm."""
    conv = nn.Conv2d(channels_in, channels, 1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups, channels))


def projector(channels_in: int, channels: int, groups: int) -> nn.Sequential:
    """Projection to the space where templates and proposals are compared (section 3.3)."""
    norm = nn.GroupNorm(groups, channels)
    return nn.Sequential(conv3(channels_in, channels), norm, nn.ReLU(), conv3(channels, channels))


def positional_embedding(offset: torch.Tensor, channels: int) -> torch.Tensor:
    """Sinusoidal embedding of the time since an object's first frame (section 3.2).

    offset [O], frames -> [O, channels] float64; (ours) as many channels as the features
    """
    even = torch.arange(0, channels, 2, device=offset.device, dtype=torch.float64)
    angle = offset[:, None].double() / 10000 ** (even / channels)
    waves = torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)
    return waves[:, :channels]


class ObjectState(MatchingState):
    """State of DMN-AOA: per object a memory of its regions, its last box and its first frame.

    boxes       [O, 4] in the network's pixels, of each object's last mask that was not empty
    masks       [O, H / 4, W / 4] in 0..1, of the previous frame
    references  reference frames of the refinement
    born        [O] int64, index of each object's first frame
    now         [] int64, index of the next frame; on the device like `born`, so that `ages` does
                not synchronise
    """

    def __init__(
        self,
        matching: MatchingState,
        references: References,
        boxes: torch.Tensor,
        masks: torch.Tensor,
    ) -> None:
        super().__init__(matching.memory, matching.every)
        self.references = references
        self.boxes = boxes
        self.masks = masks
        self.born = torch.zeros(len(boxes), device=boxes.device, dtype=torch.int64)
        self.now = torch.zeros((), device=boxes.device, dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.references.nbytes + self.masks.nbytes + self.boxes.nbytes

    def signature(self) -> tuple[Hashable, ...]:
        return *super().signature(), tuple(self.references.first.rows)

    def ages(self, count: int) -> torch.Tensor:
        """Age [count] int64 of each object in frames, at the next frame; 0 for objects that start
        with it."""
        ages = self.now - self.born[:count]
        ages[self.object_count :] = 0
        return ages

    def store(self, observed: Observed, prompted: tuple[int, ...]) -> None:
        """Store a frame. (ours) The memory of an object that is not visible stays unchanged."""
        count = len(observed.boxes)
        self.memory.make_room(count)
        self.born[self.object_count : count] = self.now
        self.references.write(observed.frame_key, observed.base, observed.masks)
        self.boxes[:count], self.masks[:count] = observed.boxes, observed.masks
        self.write(observed.key, observed.value, prompted, observed.visible)
        self.now += 1

    def skip(self) -> None:
        super().skip()
        self.now += 1

    def forget(self, slot: int) -> None:
        last = self.object_count - 1
        super().forget(slot)
        self.references.forget(slot)
        for bank in (self.boxes, self.masks, self.born):
            bank[slot] = bank[last]

    def tensors(self) -> dict[str, torch.Tensor]:
        references = {f"references.{n}": x for n, x in self.references.tensors().items()}
        count = self.object_count
        return {
            **super().tensors(),
            **(references if count else {}),
            "boxes": self.boxes[:count],
            "masks": self.masks[:count],
            "born": self.born[:count],
        }

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        super().restore(tensors, object_count)
        self.boxes[:object_count] = tensors["boxes"]
        self.masks[:object_count] = tensors["masks"]
        self.born[:object_count] = tensors["born"]
        self.now.fill_(self.frame_count)
        references = tensors_under("references.", tensors)
        if references:
            self.references.restore(references)


class DMNAOA(Method[DMNAOAFeatures, ObjectState]):
    """One backbone; objects are pooled regions of its features, segmented by matching a detector's
    proposals with the objects' templates."""

    takes_proposals = True
    needs_proposals = True
    keeps_frames = True
    in_float32 = "memory_head", "query_head", "template_projector", "proposal_projector"
    capturable = ("answer",)  # selecting proposals needs values on the host
    features = DMNAOAFeatures

    def __init__(self, config: DMNAOAConfig) -> None:
        super().__init__()
        self.config: DMNAOAConfig = config
        self.size = config.size
        channels, groups = config.value_channels, config.norm_groups
        self.base = BaseFeatures(config)
        self.memory_head = KeyValue(channels + 1, config.key_channels, channels)
        self.query_head = conv3(channels, config.key_channels)
        self.template_projector = projector(channels, config.projected_channels, groups)
        self.proposal_projector = projector(channels, config.projected_channels, groups)
        self.refine = RefineNet(config)
        initialise(self)
        self._start_alike()

    @torch.no_grad()
    def _start_alike(self) -> None:
        """(ours) Give compared layers equal initial weights: both keys, both projectors, and the
        identity for values, so that initial matches are meaningful."""
        nn.init.dirac_(self.memory_head.value.weight)
        self.memory_head.key.weight[:, :-1] = self.query_head.weight
        self.proposal_projector.load_state_dict(self.template_projector.state_dict())

    def start_gently(self) -> None:
        """With an EfficientNet-Lite: start the reductions and the alignment key as orthogonal maps,
        the refinement's residual blocks as the identity."""
        if not isinstance(self.base.backbone, EfficientNetLite):
            return
        for conv in (*(reduce[0] for reduce in self.base.reductions), self.refine.align):
            nn.init.orthogonal_(cast(nn.Conv2d, conv).weight)
        for module in self.refine.modules():
            if isinstance(module, NormedResBlock):
                nn.init.zeros_(module.norm2.weight)

    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> ObjectState:
        like, side = self.query_head.weight, self.config.region_size
        matching = MatchingState.allocate(
            self.config, memory, (side, side), max_objects, like, pools=pools
        )
        return ObjectState(
            matching,
            References(
                self.config.base_channels,
                geometry.cells(16),
                max_objects,
                self.refine.align.weight,
            ),
            boxes=torch.zeros(max_objects, 4, device=like.device),
            masks=torch.zeros(max_objects, *geometry.cells(4), device=like.device),
        )

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> DMNAOAFeatures:
        """Features of the frames and of their proposals; `proposals=None`: no proposals."""
        base, pooled = self.base(frames)
        if proposals is None:
            empty = frames.new_zeros(0, *frames.shape[2:], dtype=torch.bool)
            proposals = [Proposals(boxes_of(empty), empty, empty.new_zeros(0))] * len(frames)
        config = self.config
        selected = [
            proposal
            if proposal.masks.is_meta  # no values to select by: only the cost is counted
            else best_of(proposal, overlap=config.proposal_overlap, limit=config.max_proposals)
            for proposal in proposals
        ]
        counts = [len(proposal) for proposal in selected]
        index = [i for i, count in enumerate(counts) for _ in range(count)]
        frame = torch.tensor(index, dtype=torch.int32, device=frames.device)
        regions = self.pool(pooled, torch.cat([proposal.boxes for proposal in selected]), frame)
        projected = torch.split(to_positions(self.proposal_projector(regions)), counts)
        candidates = (Candidates(p.masks, x) for p, x in zip(selected, projected, strict=True))
        return DMNAOAFeatures(base, pooled, self.refine.key(base), tuple(candidates))

    def pool(
        self,
        maps: tuple[torch.Tensor, ...],
        boxes: torch.Tensor,
        frame: torch.Tensor | None = None,
        planes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled features of boxes [R, 4]: [R, C, s, s], or [R, C + 1, s, s] with `planes`
        [R, H, W]; in the dtype of the heads.

        frame  [R] int32, frame index of each box; None: one frame

        The paper says "ROI pooling"; this is ROIAlign, as in the released code of DMM.
        """
        regions = pool_regions(
            maps,
            boxes,
            strides=STRIDES[-len(maps) :],
            frame=frame,
            planes=planes,
            size=self.config.region_size,
            sampling=self.config.sampling,
        )
        return regions.to(self.query_head.weight.dtype)

    def segment(self, seen: Sequence[DMNAOAFeatures], state: ObjectState) -> Scores:
        (now,) = seen
        matching = self.match(self.templates(now, state), now.candidates[0], state)
        moved = state.references.move(now.key[0], self.config.sharpness, self.config.top_k)
        logits = self.refine(now.base, moved, matching.coarse)
        if self.config.read_masks:
            logits = carried(logits, (moved.first[0] + moved.previous[0])[:, 0] / 2)
        return Scores(logits, stride=4, aux=matching)

    @spanned("templates")
    def templates(self, now: DMNAOAFeatures, state: ObjectState) -> torch.Tensor:
        """Template T' [O, P, Cd] of each object: its memory, read with its last region as the query
        (equation 1)."""
        count, side = state.object_count, self.config.region_size
        regions = self.pool(now.pooled, state.boxes[:count])
        query = to_positions(self.query_head(self.embed(regions, state.ages(count))))
        stored = state.read()
        template = read_memory(
            query,
            stored.keys,
            stored.values,
            scale=self.config.key_channels**-0.5,
            length=stored.length,
            pages=stored.pages,
        )
        maps = template.transpose(1, 2).unflatten(2, (side, side))
        return to_positions(self.template_projector(maps))

    @spanned("match")
    def match(
        self, templates: torch.Tensor, candidates: Candidates, state: ObjectState
    ) -> Matching:
        """Match templates [O, P, Cd] with the proposals; coarse masks are the assigned proposals'
        (section 3.1)."""
        config = self.config
        similarity, _ = align_object(
            templates, candidates.projected, alpha=config.sharpness, score=config.score
        )
        previous = state.masks[: state.object_count]
        if config.overlap_weight:
            small = shrink(candidates.masks.float(), 4) > 0.5
            overlap = overlaps(previous > 0.5, small).to(similarity.dtype)
            similarity = torch.lerp(similarity, overlap, config.overlap_weight)
        assignment = match_proposals(
            similarity,
            steps=config.matching_steps,
            inner=config.matching_rounds,
            rate=config.matching_rate,
            answer=config.assignment,
        )
        if len(candidates.masks) == 0:  # (ours) without proposals: the previous frame's masks
            return Matching(similarity, assignment, previous)
        coarse = torch.einsum("om,mhw->ohw", assignment.float(), candidates.masks.float())
        return Matching(similarity, assignment, shrink(coarse.clamp(0, 1), 4))

    def observe(
        self, seen: Sequence[DMNAOAFeatures], masks: Masks, state: ObjectState
    ) -> Observed | None:
        (now,) = seen
        if masks.object_count == 0:
            return None
        soft = masks.probabilities[1:]
        count, known = masks.object_count, state.object_count
        boxes = boxes_of(soft > 0.5)
        visible = boxes[:, 2] > boxes[:, 0]
        whole = torch.zeros_like(boxes)  # the box of the whole frame
        whole[:, 2], whole[:, 3] = soft.shape[2], soft.shape[1]
        last = torch.cat((state.boxes[:known], whole[known:]))
        boxes = torch.where(visible[:, None], boxes, last)
        regions = self.pool(now.pooled, boxes, planes=soft.to(now.base.b4.dtype))
        key, value = self.memory_head(self.embed(regions, state.ages(count)))
        return Observed(key, value, visible, boxes, shrink(soft, 4), now.key, now.base)

    def commit(self, observed: Observed | None, masks: Masks, state: ObjectState) -> None:
        if observed is None:
            state.skip()
        else:
            state.store(observed, masks.prompted)

    def embed(self, regions: torch.Tensor, ages: torch.Tensor) -> torch.Tensor:
        """Add the positional embedding of `ages` [O] to the first C channels of regions
        [O, C or C + 1, s, s]."""
        channels = self.config.value_channels
        waves = positional_embedding(ages, channels).to(regions.dtype)[..., None, None]
        features = regions[:, :channels] + waves
        return torch.cat((features, regions[:, channels:]), dim=1)
