"""Target-aware U-VOS: D-Net discovers objects; T-Net tracks each with its own appearance model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from ...config import MemoryConfig, TargetAwareConfig
from ...errors import InputError
from ...kernels import finish_masks
from ...memory import PagePools
from ...policies.placement import seed_of
from ...policies.tracks import associate, births, lessons
from ...proposals import Proposals, boxes_of, overlaps
from ...types import Geometry, Masks, Scores, Size
from ..backbone import Pyramid, initialise
from ..blocks import resize
from ..efficientnet import normalise_cells
from ..encoder import make_encoder
from ..method import Method, State, tensors_under
from .appearance import Tracks
from .augment import augment
from .dnet import DNet, DNetFeatures, Padding
from .refiner import make_refiner
from .reid import ReID

# (ours) Logit of a proposal's pixels when it replaces a tracked mask: high enough to win over all
# other tracks.
CERTAIN = 10.0


class TargetAwareFeatures(NamedTuple):
    """Per-frame features of both networks, independent of tracks and of the previous frame."""

    frame: torch.Tensor  # [B, 3, H, W] prepared
    appearance: torch.Tensor  # [B, C, h, w], X of equation 8: layer3 of the stretched frame
    reduced: tuple[torch.Tensor, ...]  # the refiner's input from the backbone, [B, ...] per level
    discovery: DNetFeatures | None  # None with the caller's proposals
    given: Sequence[Proposals] | None  # the caller's proposals, one per frame of the batch


class Aux(NamedTuple):
    """Auxiliary outputs of `segment`.

    verified  per track, whether a proposal verified it (equation 10 above match_score)
    maps      [K, D, h, w], W1 * X of each track
    saliency  D-Net's foreground [1, 1, h, w] in 0..1; None with the caller's proposals
    """

    verified: tuple[bool, ...]
    maps: torch.Tensor
    saliency: torch.Tensor | None


class TrackState(State):
    """The tracks, one per slot, and D-Net's guidance from the previous frame.

    first_embedding  [K, E], e(y0) of each track's first mask
    born             per track, index of its first frame
    guidance         [1, C, h, w], X^SGM; valid if `guided`
    padding          (left, right, top, bottom) pixels around the frame in the network's input
    capacity         maximum number of tracks that discovery starts
    """

    def __init__(
        self,
        tracks: Tracks,
        embedding: torch.Tensor,
        guidance: torch.Tensor,
        padding: Padding,
        capacity: int,
    ) -> None:
        self.tracks = tracks
        self.first_embedding = embedding
        self.guidance = guidance
        self.padding = padding
        self.capacity = capacity
        self.guided = False
        self.frame_count = 0
        self.born: list[int] = []

    @property
    def nbytes(self) -> int:
        return self.tracks.nbytes + self.first_embedding.nbytes + self.guidance.nbytes

    def forget(self, slot: int) -> None:
        last = self.object_count - 1
        self.tracks.forget(slot, last)
        self.first_embedding[slot] = self.first_embedding[last]
        self.born[slot] = self.born[last]
        self.born.pop()
        self.object_count = last

    def tensors(self) -> dict[str, torch.Tensor]:
        count = self.object_count
        return {
            "frame_count": torch.tensor(self.frame_count),
            "born": torch.tensor(self.born, dtype=torch.int64),
            "guided": torch.tensor(self.guided),
            "guidance": self.guidance,
            "first_embedding": self.first_embedding[:count],
            **{f"tracks.{name}": x for name, x in self.tracks.tensors(count).items()},
        }

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.frame_count = int(tensors["frame_count"])
        self.born = tensors["born"].tolist()
        self.guided = bool(tensors["guided"])
        self.guidance.copy_(tensors["guidance"])
        self.first_embedding[:object_count] = tensors["first_embedding"]
        self.tracks.restore(tensors_under("tracks.", tensors), object_count)
        self.object_count = object_count


class TargetAware(Method[TargetAwareFeatures, TrackState]):
    """Discovers objects, tracks each by an appearance model, and verifies tracks by proposals.

    A mask from the caller starts a track with its id, or corrects one and counts as verified.
    """

    needs_mask = False
    takes_proposals = True
    stride = 16
    bf16_safe = False  # heat map peaks and the online fit: IoU .58 and .20 on two clips
    capturable = ("encode",)  # births and verifications need values on the host
    features = TargetAwareFeatures

    def __init__(self, config: TargetAwareConfig) -> None:
        super().__init__()
        self.config: TargetAwareConfig = config
        self.size = config.size
        self.max_objects = config.max_tracks
        self.smallest_proposal = config.smallest_proposal
        self.dnet = DNet(config)
        self.reid = ReID(config)
        self.backbone = make_encoder(
            config.tracker_backbone,
            config.tracker_width,
            layer4="strided" if config.tracker_stride == 32 else None,
            norm=config.norm,
        )
        self.refiner = make_refiner(config, self.backbone.channels)
        initialise(self)

    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> TrackState:
        config, like = self.config, next(self.dnet.guide_aspp.parameters())
        cells = (-(-config.tracker_size // 16),) * 2  # rounded up, as by a ResNet
        tracks = Tracks(config, max_objects, self.backbone.channels[2], cells, like)
        embedding = torch.zeros(max_objects, config.reid_channels, device=like.device)
        guidance = like.new_zeros(1, config.aspp_channels, *geometry.cells(16))
        capacity = min(max_objects, config.max_tracks)
        return TrackState(tracks, embedding, guidance, geometry.padding, capacity)

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> TargetAwareFeatures:
        for proposal in proposals or ():
            self._check_embeddings(proposal.embeddings)
        pyramid = self.see(self.stretched(frames))
        reduced = tuple(self.refiner.reduce(pyramid))
        discovery = self.dnet.encode(frames) if proposals is None else None
        return TargetAwareFeatures(frames, pyramid.r4, reduced, discovery, proposals)

    def _check_embeddings(self, vectors: torch.Tensor | None) -> None:
        channels = self.config.reid_channels
        if vectors is not None and vectors.shape[1] != channels:
            raise InputError(
                f"proposals: embeddings: wanted [P, {channels}] of this model's own ReID network, "
                f"given {list(vectors.shape)}; leave them out to have them computed"
            )

    def segment(self, seen: Sequence[TargetAwareFeatures], state: TrackState) -> Scores:
        (now,) = seen
        height, width = now.frame.shape[2:]
        proposals, saliency = self._discover(now, state)
        maps = state.tracks.project(now.appearance)
        logits = self._track(now, maps, state)
        masks = _exclusive_masks(logits, (height, width))
        matched, unseen = self._associate(now.frame, masks, proposals, state)
        for track, proposal in enumerate(matched):
            if proposal is not None and self.config.verified_mask == "proposal":
                logits[track] = _certain_logits(proposals.masks[proposal])
        born = self._births(proposals, unseen, state.capacity - state.object_count)
        rows = torch.cat((logits, _certain_logits(proposals.masks[born])))
        verified = tuple(proposal is not None for proposal in matched)
        return Scores(rows, stride=1, aux=Aux(verified, maps, saliency))

    def _discover(
        self, now: TargetAwareFeatures, state: TrackState
    ) -> tuple[Proposals, torch.Tensor | None]:
        """Proposals of a frame, and D-Net's saliency; None with the caller's proposals."""
        if now.given is not None:
            return now.given[0], None
        assert now.discovery is not None
        maps = self.dnet(now.discovery, state.guidance if state.guided else None)
        saliency = torch.sigmoid(maps.saliency.float())
        if saliency.is_meta:  # no values: only the cost is counted
            masks = now.frame.new_zeros(0, *now.frame.shape[2:], dtype=torch.bool)
            return Proposals(boxes_of(masks), masks, masks.new_zeros(0)), saliency
        return self.dnet.proposals(maps, state.padding), saliency

    def _track(
        self, now: TargetAwareFeatures, maps: torch.Tensor, state: TrackState
    ) -> torch.Tensor:
        """Refined logits [K, H, W] float32 of each track's appearance model (equation 8)."""
        height, width = now.frame.shape[2:]
        if state.object_count == 0:
            return now.frame.new_zeros(0, height, width, dtype=torch.float32)
        coarse = state.tracks.scores(maps).to(now.appearance.dtype)
        square = (self.config.tracker_size,) * 2
        refined = self.refiner(coarse, list(now.reduced), square).float()
        return resize(refined[:, None], (height, width))[:, 0]

    def _associate(
        self, frame: torch.Tensor, masks: torch.Tensor, proposals: Proposals, state: TrackState
    ) -> tuple[list[int | None], list[int]]:
        """Index of the verifying proposal per track (or None), and indices of proposals that match
        no track; see `policies.tracks.associate`."""
        overlap = np.zeros((len(masks), len(proposals)), np.float32)
        if overlap.size:
            overlap = overlaps(masks, proposals.masks).cpu().numpy()
        compare = partial(self._compare, frame, masks, proposals, state)
        return associate(self.config, overlap, compare)

    def _births(self, proposals: Proposals, unseen: list[int], room: int) -> list[int]:
        """Select from the unmatched proposals those that start tracks, at most `room`."""
        if not unseen or room <= 0:
            return []
        masks = proposals.masks[unseen]
        scores = proposals.scores[unseen, None]
        table = torch.cat((scores, overlaps(masks, masks)), dim=1).cpu().numpy()
        return [unseen[i] for i in births(self.config, table[:, 0], table[:, 1:], room)]

    def _compare(
        self,
        frame: torch.Tensor,
        masks: torch.Tensor,
        proposals: Proposals,
        state: TrackState,
        track_index: np.ndarray,
        proposal_index: np.ndarray,
    ) -> np.ndarray:
        """ReID similarity [k, p] of tracks and proposals: cosine to the track's current embedding
        plus cosine to its first."""
        rows, columns = track_index.tolist(), proposal_index.tolist()
        boxes = boxes_of(masks[rows])
        if proposals.embeddings is None:
            boxes = torch.cat((boxes, proposals.boxes[columns]))
            now, proposed = self.reid(frame, boxes).split((len(rows), len(columns)))
        else:
            now, proposed = self.reid(frame, boxes), proposals.embeddings[columns].float()
        first = state.first_embedding[rows]
        similarity: np.ndarray = (now @ proposed.T + first @ proposed.T).cpu().numpy()
        return similarity

    def remember(
        self, seen: Sequence[TargetAwareFeatures], masks: Masks, state: TrackState
    ) -> None:
        (now,) = seen
        labels = masks.probabilities.max(dim=0).indices  # argmax takes 25 times as long
        owned = (
            labels == torch.arange(1, 1 + masks.object_count, device=labels.device)[:, None, None]
        )
        square = (self.config.tracker_size,) * 2
        targets = resize(owned[:, None].float(), square)[:, 0]
        self._learn(masks, targets, _areas(owned), state)
        new = range(state.object_count, masks.object_count)
        for slot in new:
            self._begin(slot, now, targets[slot], state)
        corrected = [slot for slot in masks.prompted if slot < state.object_count]
        changed = [*corrected, *new]
        if changed:
            state.first_embedding[changed] = self.reid(now.frame, boxes_of(owned[changed]))
        state.object_count = masks.object_count
        self._guide(now, masks, owned, state)
        state.frame_count += 1

    def _learn(
        self, masks: Masks, targets: torch.Tensor, areas: list[int], state: TrackState
    ) -> None:
        """Add a sample to every track visible in the frame; refit the tracks that are due."""
        tracks, aux = state.tracks, masks.aux
        known = range(state.object_count)
        verified = [slot in masks.prompted or aux.verified[slot] for slot in known]
        ages = [state.frame_count - state.born[slot] for slot in known]
        updates = lessons(self.config, areas, verified, ages)
        for slot, sure, _ in updates:
            tracks.push(slot, aux.maps[slot], targets[slot], verified=sure)
        tracks.update([update.slot for update in updates if update.due])

    def _begin(
        self, slot: int, now: TargetAwareFeatures, target: torch.Tensor, state: TrackState
    ) -> None:
        """Fit a new track to its first frame and augmentations of it, seeded by frame and slot."""
        config = self.config
        features, labels = now.appearance, target[None]
        if config.augmentations:
            generator = torch.Generator("cpu").manual_seed(seed_of(state.frame_count, slot))
            square = self.stretched(now.frame)
            frames, moved = augment(square, target > 0.5, config.augmentations, generator)
            features = torch.cat((features, self.see(frames).r4))
            labels = torch.cat((labels, moved.float()))
        state.tracks.begin(slot, features, labels)
        state.born.append(state.frame_count)

    def _guide(
        self, now: TargetAwareFeatures, masks: Masks, owned: torch.Tensor, state: TrackState
    ) -> None:
        """Compute D-Net's guidance for the next frame from this one: S_{t-1} and I_{t-1}."""
        if now.discovery is None:
            return
        if self.config.guidance == "tracks" or masks.aux is None:
            saliency = owned.any(dim=0, keepdim=True)[None].float()
        else:
            saliency = masks.aux.saliency
        state.guidance.copy_(self.dnet.guide(now.frame, saliency, now.discovery.deep))
        state.guided = True

    def see(self, squares: torch.Tensor) -> Pyramid:
        """T-Net's feature pyramid of stretched frames [B, 3, size, size]."""
        pyramid: Pyramid = self.backbone(squares)
        if self.config.normalised:
            maps = (x if x is None else normalise_cells(x) for x in pyramid)
            pyramid = Pyramid(*maps)  # type: ignore[arg-type]
        return pyramid

    def stretched(self, frames: torch.Tensor) -> torch.Tensor:
        """T-Net's input: the whole frame, stretched to a square of side tracker_size."""
        square = (self.config.tracker_size,) * 2
        return functional.interpolate(frames, square, mode="bilinear", align_corners=False)


def _areas(masks: torch.Tensor) -> list[int]:
    """Area of each mask [K, H, W] in pixels; of meta tensors, the whole frame's."""
    if masks.is_meta:
        return [masks[0].numel()] * len(masks)
    areas: list[int] = masks.sum(dim=(1, 2)).tolist()
    return areas


def _certain_logits(masks: torch.Tensor) -> torch.Tensor:
    """Logits +-CERTAIN of boolean masks."""
    return torch.where(masks, CERTAIN, -CERTAIN)


def _exclusive_masks(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """Masks [K, H, W] bool where each track wins after soft aggregation of all tracks."""
    count = len(logits)
    ids = torch.arange(1, 1 + count, device=logits.device)
    region = (0.0, 0.0, float(size[0]), float(size[1]))
    labels, _ = finish_masks(logits, ids.to(torch.uint8), size=size, region=region)
    return labels == ids[:, None, None]
