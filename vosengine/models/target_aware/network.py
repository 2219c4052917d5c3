"""Target-aware U-VOS: objects that D-Net discovers, each followed by a model of its own (T-Net)."""

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
from ..efficientnet import normalise_cells
from ..encoder import make_encoder
from ..method import Method, State
from .appearance import Tracks
from .augment import augment
from .dnet import DNet, DNetFeatures, Padding
from .refiner import make_refiner
from .reid import ReID

# Logit of a proposal's pixels where it takes the place of a tracked mask: sure, and so above
# whatever the other tracks say. [O]
CERTAIN = 10.0


class TargetAwareFeatures(NamedTuple):
    """What the two networks know of a frame before they look at tracks or at the frame before."""

    frame: torch.Tensor  # [B, 3, H, W] prepared
    appearance: torch.Tensor  # [B, C, h, w], X of equation 8: layer3 of the stretched frame
    reduced: tuple[torch.Tensor, ...]  # what the refiner takes of the backbone, [B, ...]
    discovery: DNetFeatures | None  # None where proposals were given
    given: Sequence[Proposals] | None  # for every frame of the batch


class Aux(NamedTuple):
    """What `segment` noted of a frame.

    verified  per track, whether a proposal confirmed it (equation 10 above match_score)
    maps      [K, D, h, w] W1 * X of every track
    saliency  D-Net's foreground [1, 1, h, w] in 0..1; None where proposals were given
    """

    verified: tuple[bool, ...]
    maps: torch.Tensor
    saliency: torch.Tensor | None


class TrackState(State):
    """The tracks, one per slot, and what D-Net is told of the frame before.

    first_embedding  [K, E]  e(y0), of each track's first mask
    born             per track, the frame that it began with
    guidance         [1, C, h, w]  X^SGM; not valid before `guided`
    padding          around the frame in the network's input
    capacity         no more tracks are begun by discovery
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
        prefix = "tracks."
        models = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        self.tracks.restore(models, object_count)
        self.object_count = object_count


class TargetAware(Method[TargetAwareFeatures, TrackState]):
    """Discovers objects, follows each by what it looks like, and verifies that by proposals.

    A mask from the caller starts a track of its id, or corrects one and counts as verified.
    """

    needs_mask = False
    takes_proposals = True
    stride = 16
    bf16_safe = False  # a heat map's peaks and an online fit: IoU .58 and .20 on two clips
    capturable = ("encode",)  # births and verifications are decided by numbers
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
        cells = (-(-config.tracker_size // 16),) * 2  # a ResNet rounds up
        tracks = Tracks(config, max_objects, self.backbone.channels[2], cells, like)
        embedding = torch.zeros(max_objects, config.reid_channels, device=like.device)
        guidance = like.new_zeros(1, config.aspp_channels, *geometry.cells(16))
        capacity = min(max_objects, config.max_tracks)
        return TrackState(tracks, embedding, guidance, geometry.padding, capacity)

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> TargetAwareFeatures:
        for each in proposals or ():
            self._check_embeddings(each.embeddings)
        pyramid = self.see(self._stretched(frames))
        reduced = tuple(self.refiner.reduce(pyramid))
        discovery = self.dnet.encode(frames) if proposals is None else None
        return TargetAwareFeatures(frames, pyramid.r4, reduced, discovery, proposals)

    def _check_embeddings(self, vectors: torch.Tensor | None) -> None:
        channels = self.config.reid_channels
        if vectors is not None and vectors.shape[1] != channels:
            raise InputError(
                f"proposals: embeddings: wanted [P, {channels}] of this model's own ReID network, "
                f"given {list(vectors.shape)}; leave them out, and it computes them"
            )

    def segment(self, seen: Sequence[TargetAwareFeatures], state: TrackState) -> Scores:
        (now,) = seen
        height, width = now.frame.shape[2:]
        proposals, saliency = self._discover(now, state)
        maps = state.tracks.project(now.appearance)
        logits = self._track(now, maps, state)
        masks = _exclusive(logits, (height, width))
        matched, unseen = self._associate(now.frame, masks, proposals, state)
        for track, proposal in enumerate(matched):
            if proposal is not None and self.config.verified_mask == "proposal":
                logits[track] = _sure(proposals.masks[proposal])
        born = self._births(proposals, unseen, state.capacity - state.object_count)
        rows = torch.cat((logits, _sure(proposals.masks[born])))
        verified = tuple(proposal is not None for proposal in matched)
        return Scores(rows, stride=1, aux=Aux(verified, maps, saliency))

    def _discover(
        self, now: TargetAwareFeatures, state: TrackState
    ) -> tuple[Proposals, torch.Tensor | None]:
        """The proposals for a frame, and D-Net's foreground if they are its own."""
        if now.given is not None:
            return now.given[0], None
        assert now.discovery is not None
        maps = self.dnet(now.discovery, state.guidance if state.guided else None)
        saliency = torch.sigmoid(maps.saliency.float())
        if saliency.is_meta:  # no numbers to look at: only the cost is counted
            masks = now.frame.new_zeros(0, *now.frame.shape[2:], dtype=torch.bool)
            return Proposals(boxes_of(masks), masks, masks.new_zeros(0)), saliency
        return self.dnet.proposals(maps, state.padding), saliency

    def _track(
        self, now: TargetAwareFeatures, maps: torch.Tensor, state: TrackState
    ) -> torch.Tensor:
        """Logits [K, H, W] of every track by its own model (equation 8), refined."""
        height, width = now.frame.shape[2:]
        if state.object_count == 0:
            return now.frame.new_zeros(0, height, width, dtype=torch.float32)
        coarse = state.tracks.scores(maps).to(now.appearance.dtype)
        square = (self.config.tracker_size,) * 2
        refined = self.refiner(coarse, list(now.reduced), square).float()
        return _resized(refined, (height, width))

    def _associate(
        self, frame: torch.Tensor, masks: torch.Tensor, proposals: Proposals, state: TrackState
    ) -> tuple[list[int | None], list[int]]:
        """Per track the proposal that verifies it, and the proposals that nothing tracked explains:
        `policies.tracks.associate`."""
        overlap = np.zeros((len(masks), len(proposals)), np.float32)
        if overlap.size:
            overlap = overlaps(masks, proposals.masks).cpu().numpy()
        compare = partial(self._compare, frame, masks, proposals, state)
        return associate(self.config, overlap, compare)

    def _births(self, proposals: Proposals, unseen: list[int], room: int) -> list[int]:
        """Of the new proposals those that begin tracks."""
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
        tracks: np.ndarray,
        others: np.ndarray,
    ) -> np.ndarray:
        """Both cosines of these tracks and these proposals, [k, p]."""
        rows, columns = tracks.tolist(), others.tolist()
        boxes = boxes_of(masks[rows])
        if proposals.embeddings is None:
            boxes = torch.cat((boxes, proposals.boxes[columns]))
            now, theirs = self.reid(frame, boxes).split((len(rows), len(columns)))
        else:
            now, theirs = self.reid(frame, boxes), proposals.embeddings[columns].float()
        first = state.first_embedding[rows]
        found: np.ndarray = (now @ theirs.T + first @ theirs.T).cpu().numpy()
        return found

    def remember(
        self, seen: Sequence[TargetAwareFeatures], masks: Masks, state: TrackState
    ) -> None:
        (now,) = seen
        labels = masks.probabilities.max(dim=0).indices  # argmax takes 25 times as long
        owned = (
            labels == torch.arange(1, 1 + masks.object_count, device=labels.device)[:, None, None]
        )
        square = (self.config.tracker_size,) * 2
        targets = _resized(owned.float(), square)
        self._learn(masks, targets, _areas(owned), state)
        fresh = range(state.object_count, masks.object_count)
        for slot in fresh:
            self._begin(slot, now, targets[slot], state)
        corrected = [slot for slot in masks.prompted if slot < state.object_count]
        named = [*corrected, *fresh]
        if named:
            state.first_embedding[named] = self.reid(now.frame, boxes_of(owned[named]))
        state.object_count = masks.object_count
        self._guide(now, masks, owned, state)
        state.frame_count += 1

    def _learn(
        self, masks: Masks, targets: torch.Tensor, areas: list[int], state: TrackState
    ) -> None:
        """Store the frame for every track that is in it, refit those whose turn it is."""
        tracks, noted = state.tracks, masks.aux
        known = range(state.object_count)
        verified = [slot in masks.prompted or noted.verified[slot] for slot in known]
        ages = [state.frame_count - state.born[slot] for slot in known]
        taught = lessons(self.config, areas, verified, ages)
        for slot, sure, _ in taught:
            tracks.push(slot, noted.maps[slot], targets[slot], verified=sure)
        tracks.update([lesson.slot for lesson in taught if lesson.due])

    def _begin(
        self, slot: int, now: TargetAwareFeatures, target: torch.Tensor, state: TrackState
    ) -> None:
        """Fit a new track to its first frame and to its augmentations, seeded by frame and slot."""
        config = self.config
        features, labels = now.appearance, target[None]
        if config.augmentations:
            generator = torch.Generator("cpu").manual_seed(seed_of(state.frame_count, slot))
            square = self._stretched(now.frame)
            frames, moved = augment(square, target > 0.5, config.augmentations, generator)
            features = torch.cat((features, self.see(frames).r4))
            labels = torch.cat((labels, moved.float()))
        state.tracks.begin(slot, features, labels)
        state.born.append(state.frame_count)

    def _guide(
        self, now: TargetAwareFeatures, masks: Masks, owned: torch.Tensor, state: TrackState
    ) -> None:
        """Tell D-Net's next frame what this one showed: S_{t-1} and I_{t-1}."""
        if now.discovery is None:
            return
        if self.config.guidance == "tracks" or masks.aux is None:
            saliency = owned.any(dim=0, keepdim=True)[None].float()
        else:
            saliency = masks.aux.saliency
        state.guidance.copy_(self.dnet.guide(now.frame, saliency, now.discovery.deep))
        state.guided = True

    def see(self, squares: torch.Tensor) -> Pyramid:
        """T-Net's maps of frames that were stretched."""
        pyramid: Pyramid = self.backbone(squares)
        if self.config.normalised:
            maps = (x if x is None else normalise_cells(x) for x in pyramid)
            pyramid = Pyramid(*maps)  # type: ignore[arg-type]
        return pyramid

    def _stretched(self, frames: torch.Tensor) -> torch.Tensor:
        """What T-Net sees: the network's whole input, stretched to a square."""
        square = (self.config.tracker_size,) * 2
        return functional.interpolate(frames, square, mode="bilinear", align_corners=False)


def _resized(planes: torch.Tensor, size: Size) -> torch.Tensor:
    """[K, H, W] at another size, bilinear."""
    return functional.interpolate(planes[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _areas(masks: torch.Tensor) -> list[int]:
    """Pixels of every mask [K, H, W]; all there are where tensors hold no numbers (is_meta)."""
    if masks.is_meta:
        return [masks[0].numel()] * len(masks)
    areas: list[int] = masks.sum(dim=(1, 2)).tolist()
    return areas


def _sure(masks: torch.Tensor) -> torch.Tensor:
    """Logits of masks that are taken as they are."""
    return torch.where(masks, CERTAIN, -CERTAIN)


def _exclusive(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """bool [K, H, W]: where each track wins after the soft aggregation of all of them."""
    count = len(logits)
    ids = torch.arange(1, 1 + count, device=logits.device)
    region = (0.0, 0.0, float(size[0]), float(size[1]))
    labels, _ = finish_masks(logits, ids.to(torch.uint8), size=size, region=region)
    return labels == ids[:, None, None]
