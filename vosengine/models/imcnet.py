"""IMCNet: unsupervised foreground segmentation of a frame from its temporal neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from ..config import IMCNetConfig, MemoryConfig
from ..errors import InputError
from ..kernels import deform_conv, read_memory
from ..kernels.spans import spanned
from ..memory import PagePools
from ..proposals import Proposals
from ..types import Geometry, Masks, Scores
from .backbone import initialise
from .blocks import ResBlock, conv3, to_positions, wide
from .efficientnet import Neck, normalise_cells
from .encoder import make_encoder
from .method import FIRST_ANSWERS, Method, State

FIRST_LIKENESS = 0.1  # initial scale of Fusion.centre, so that frames get more equal weights
PROBABILITY_LIMIT = 1e-7  # probabilities are clamped to [limit, 1 - limit] before the logit


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Bilinear upsampling by 2 with align_corners=True, as everywhere in the released code."""
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class IMCNetFeatures(NamedTuple):
    """Per-frame features of IMCNet, independent of neighbouring frames."""

    r2: torch.Tensor  # [B, C2, H / 4, W / 4]
    r3: torch.Tensor  # [B, C3, H / 8, W / 8]
    r4: torch.Tensor  # [B, C4, H / 16, W / 16]
    r5: torch.Tensor  # [B, C5, H / 32, W / 32]
    key: torch.Tensor  # [B, channels, H / 32, W / 32]


class JoinedForeground(NamedTuple):
    """Joined state of several streams, one object each."""

    object_count: int
    tables: tuple[torch.Tensor, ...] = ()

    def padded(self, count: int) -> JoinedForeground:
        """Return self: each stream has one object."""
        return self

    def at(self, tables: tuple[torch.Tensor, ...], streams: torch.Tensor) -> JoinedForeground:
        """Return self: there are no tables."""
        return self


class ForegroundState(State):
    """Empty state: the method depends only on the frames in `sees`."""

    @classmethod
    def join(cls, states: Sequence[ForegroundState]) -> JoinedForeground:
        return JoinedForeground(sum(state.object_count for state in states))

    def forget(self, slot: int) -> None:
        raise InputError("remove: imcnet answers with one foreground mask; it cannot be removed")

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.object_count = object_count


class Affinity(nn.Module):
    """Affinity computing module (section II-B).

    S = L^T R for the keys of all frames stacked along channels; each frame's attention is its
    feature map weighted by the softmax of S over the positions of L.
    """

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(frames * channels, frames * channels, 1)
        self.right = nn.Conv2d(frames * channels, frames * channels, 1)

    def forward(self, keys: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """keys [B, T, Ck, h, w], maps [B, T, C, h, w] -> attention [B, T, C, h, w]."""
        stacked = keys.flatten(1, 2)
        left, right = to_positions(self.left(stacked)), to_positions(self.right(stacked))
        values = to_positions(maps.flatten(1, 2))
        values = values.to(left.dtype).contiguous()  # under autocast a norm returns float32
        read = read_memory(right.contiguous(), left.contiguous(), values, scale=1.0)
        return read.transpose(1, 2).reshape(maps.shape)


class Level(nn.Module):
    """Decoder level from stride 2s to s: skip features gated by the coarser level's attention."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels_in, channels)
        self.block = ResBlock(channels, channels)
        self.merge = ResBlock(channels, channels)
        self.predict = nn.Sequential(ResBlock(channels, channels), nn.Conv2d(channels, 1, 1))

    def forward(
        self, skip: torch.Tensor, above: torch.Tensor, attention: torch.Tensor
    ) -> torch.Tensor:
        """skip [T, C, h, w], above [T, D, h / 2, w / 2], attention [T, 1, h / 2, w / 2] ->
        [T, D, h, w]"""
        gated = self.block(self.conv(skip * upsample(attention).to(skip.dtype)))
        return self.merge(upsample(above) + gated)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Attention [T, 1, h, w] in 0..1 for the next finer level; float32 or wider, because
        bfloat16 rounds values above .998 to 1, where a loss has no gradient."""
        return torch.sigmoid(wide(self.predict(x)))


class Propagation(nn.Module):
    """Attention propagation module: decodes every frame top-down; each level is gated by the
    attention of the coarser one."""

    def __init__(self, pyramid: Sequence[int], channels: int) -> None:
        super().__init__()
        self.conv = conv3(pyramid[3], channels)
        self.block = ResBlock(channels, channels)
        # Coarse to fine. The finest level's prediction is a side output, used in training only.
        self.levels = nn.ModuleList(Level(pyramid[i], channels) for i in (2, 1, 0))

    def forward(
        self, maps: Sequence[torch.Tensor], attention: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """maps r2..r5 [T, ...], attention [T, C5, h, w] -> features [T, channels, H / 4, W / 4],
        and the side maps [T, 1, ., .] in 0..1, coarse to fine."""
        weighted = maps[3] * attention * attention.mean(dim=(2, 3), keepdim=True)
        gates = [activation_map(weighted)]
        x = self.block(self.conv(weighted))
        for module, skip in zip(self.levels, reversed(maps[:3]), strict=True):
            level = cast(Level, module)
            x = level(skip, x, gates[-1])
            if self.training or len(gates) < len(self.levels):
                gates.append(level.gate(x))
        return x, gates


def activation_map(weighted: torch.Tensor) -> torch.Tensor:
    """Min-max normalised activation: relu of the channel mean, scaled to 0..1 per frame;
    [T, C, h, w] -> [T, 1, h, w], float32 or wider."""
    mean = functional.relu(wide(weighted).mean(dim=1, keepdim=True))
    low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
    return (mean - low) / (high - low + 1e-6)


class Alignment(nn.Module):
    """One layer of the alignment cascade: deformable convolution of a neighbour's features, with
    offsets predicted from it and the centre frame."""

    def __init__(self, channels: int, offset_groups: int) -> None:
        super().__init__()
        self.join = conv3(2 * channels, channels)
        self.offset = conv3(channels, 2 * 9 * offset_groups)
        self.deform = conv3(channels, channels)

    def forward(self, centre: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """centre, neighbours [N, C, h, w] -> aligned neighbours [N, C, h, w]"""
        joined = torch.cat((centre, neighbours), dim=1)
        offset = self.offset(self.join(joined))
        # Under autocast the features are in half precision, the weights in float32.
        weight, bias = (x.to(offset.dtype) for x in self.deform.parameters())
        return deform_conv(neighbours.to(offset.dtype), offset, weight, bias=bias, padding=1)


class Fusion(nn.Module):
    """Temporal-spatial consistency: frames weighted by similarity to the centre frame, then
    spatial attention on two coarser grids (the structure of EDVR's fusion)."""

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        c, joined = channels, frames * channels
        self.centre = conv3(c, c)
        self.frame = conv3(c, c)
        self.fuse = nn.Conv2d(joined, c, 1)
        self.spatial1 = nn.Conv2d(joined, c, 1)
        self.spatial2 = nn.Conv2d(2 * c, c, 1)
        self.coarse1 = nn.Conv2d(c, c, 1)
        self.coarse2 = conv3(2 * c, c)
        self.coarse3 = conv3(c, c)
        self.spatial3 = conv3(c, c)
        self.spatial4 = nn.Conv2d(c, c, 1)
        self.spatial5 = conv3(c, c)
        self.add1 = nn.Conv2d(c, c, 1)
        self.add2 = nn.Conv2d(c, c, 1)

    def forward(self, aligned: torch.Tensor) -> torch.Tensor:
        """Fuse [B, T, C, h, w], the centre frame at T // 2, to [B, C, h, w]."""
        query = self.centre(aligned[:, aligned.shape[1] // 2])[:, None]
        frames = self.frame(aligned.flatten(0, 1)).unflatten(0, aligned.shape[:2])
        likeness = torch.sigmoid((query * frames).sum(dim=2, keepdim=True))
        joined = (likeness * aligned).flatten(1, 2)
        fused = functional.relu(self.fuse(joined))
        attention = self._attention(joined)
        added = self.add2(functional.relu(self.add1(attention)))
        return fused * torch.sigmoid(attention) * 2 + added

    def _attention(self, joined: torch.Tensor) -> torch.Tensor:
        relu = functional.relu
        fine = relu(self.spatial2(_pooled(relu(self.spatial1(joined)))))
        coarse = relu(self.coarse2(_pooled(relu(self.coarse1(fine)))))
        coarse = upsample(relu(self.coarse3(coarse)))
        fine = relu(self.spatial4(relu(self.spatial3(fine)) + coarse))
        return self.spatial5(upsample(fine))


def _pooled(x: torch.Tensor) -> torch.Tensor:
    """3x3 max and mean pooling with stride 2, concatenated along channels."""
    highest = functional.max_pool2d(x, 3, 2, 1)
    return torch.cat((highest, functional.avg_pool2d(x, 3, 2, 1)), dim=1)


class Bridge(nn.Module):
    """Fusion of the ablation without temporal-spatial consistency: one 3x3 convolution."""

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.conv = conv3(frames * channels, channels)

    def forward(self, aligned: torch.Tensor) -> torch.Tensor:
        return self.conv(aligned.flatten(1, 2))


class IMCNet(Method[IMCNetFeatures, ForegroundState]):
    """Segments the foreground (object 1) from a frame and those `step` frames before and after."""

    needs_mask = False
    takes_mask = False
    batched = True
    stride = 32
    max_objects = most_objects = 1
    bf16_safe = False  # products of features: mean IoU .97 over ten clips, minimum .91
    features = IMCNetFeatures

    def __init__(self, config: IMCNetConfig) -> None:
        super().__init__()
        self.config: IMCNetConfig = config
        self.sees = config.sees
        self.size = config.size
        self.threshold_logit = math.log(config.threshold / (1 - config.threshold))
        frames, channels = len(config.sees), config.channels
        self.backbone = make_encoder(
            config.backbone, config.width, layer4="strided", norm=config.norm
        )
        pyramid = config.neck or self.backbone.channels
        self.neck = None if config.neck is None else Neck(self.backbone.channels, config.neck)
        self.key = conv3(pyramid[3], channels)
        self.affinity = Affinity(frames, channels)
        self.propagation = Propagation(pyramid, channels)
        self.alignments = nn.ModuleList(
            Alignment(channels, config.offset_groups) for _ in range(config.alignments)
        )
        self.fusion = {"tsc": Fusion, "conv3": Bridge}[config.fusion](frames, channels)
        self.block = ResBlock(channels, channels)
        self.predict = nn.Conv2d(channels, 1, 1)
        initialise(self)
        # Products of features would explode. The scales give affinities of about 1, gated features
        # as large as the others, offsets of about a cell, and scores that do not saturate. The
        # outputs of a neck have an RMS of about 1 already.
        offsets = [cast(Alignment, alignment).offset for alignment in self.alignments]
        with torch.no_grad():
            for conv, scale in (
                (self.affinity.left, 0.02),
                (self.affinity.right, 0.02),
                (self.propagation.conv, 0.001 if self.neck is None else 1.0),
                (self.predict, 0.005),
                *((offset, 0.01) for offset in offsets),
            ):
                conv.weight *= scale

    def start_gently(self) -> None:
        """With a neck: start residual blocks as the identity, gates at about 1/2 and frames at more
        equal weights."""
        if self.neck is None:
            return
        for module in self.modules():
            if isinstance(module, ResBlock):
                module.conv2.weight.zero_()
            elif isinstance(module, Level):
                cast(nn.Conv2d, module.predict[1]).weight.mul_(FIRST_ANSWERS)
            elif isinstance(module, Fusion):
                module.centre.weight.mul_(FIRST_LIKENESS)

    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> ForegroundState:
        return ForegroundState()

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> IMCNetFeatures:
        pyramid = self.backbone(frames)
        r2, r3, r4, r5 = pyramid if self.neck is None else self.neck(pyramid)
        return IMCNetFeatures(r2, r3, r4, r5, self.key(r5))

    def segment(self, seen: Sequence[IMCNetFeatures], state: ForegroundState) -> Scores:
        """Foreground logits, one row per stream, at the network's full size.

        The logit is halved because the soft aggregation of one object with the background squares
        its odds; the final probability is then the network's, its odds divided by those of the
        configuration's threshold. (ours) Logits are interpolated to the frame's size; the released
        code takes the nearest pixel.
        """
        probability = self.foreground(seen)
        limited = probability.clamp(PROBABILITY_LIMIT, 1 - PROBABILITY_LIMIT)
        return Scores((limited[:, 0].logit() - self.threshold_logit) / 2, stride=1)

    def foreground(self, seen: Sequence[IMCNetFeatures]) -> torch.Tensor:
        """Foreground probability [B, 1, H, W] float32 of the middle frame."""
        # Consecutive rows after flatten(0, 1) are the frames of one stream.
        stacked = [torch.stack(level, dim=1) for level in zip(*seen, strict=True)]
        *maps, keys = stacked
        attention = self.affinity(keys, maps[3]).flatten(0, 1)
        features, _ = self.propagation([level.flatten(0, 1) for level in maps], attention)
        return self.decode(features.unflatten(0, keys.shape[:2]))

    @spanned("decode")
    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """Propagated features [B, T, C, H / 4, W / 4] -> probability [B, 1, H, W] float32."""
        fused = self._normalised(self.fusion(self.align(self._normalised(features))))
        logits = self.predict(self.block(fused))
        probability = torch.sigmoid(logits.float())
        return functional.interpolate(
            probability, scale_factor=4, mode="bilinear", align_corners=True
        )

    def _normalised(self, features: torch.Tensor) -> torch.Tensor:
        """RMS-normalise cells if there is a neck. Sums and products of features have no norms in
        between; unbounded, they grow until a training step diverges."""
        return features if self.neck is None else normalise_cells(features)

    @spanned("align")
    def align(self, features: torch.Tensor) -> torch.Tensor:
        """Align the neighbours in [B, T, C, h, w] to the middle frame; the shape is unchanged."""
        streams, frames = features.shape[:2]
        middle = frames // 2
        if frames == 1:
            return features
        centre = features[:, middle : middle + 1]
        neighbours = torch.cat((features[:, :middle], features[:, middle + 1 :]), dim=1)
        centres = centre.expand_as(neighbours).flatten(0, 1)
        x = neighbours.flatten(0, 1)
        for alignment in self.alignments:
            x = alignment(centres, x)
        aligned = x.reshape(streams, frames - 1, *x.shape[1:])
        return torch.cat((aligned[:, :middle], centre, aligned[:, middle:]), dim=1)

    def observe(self, seen: Sequence[IMCNetFeatures], masks: Masks, state: ForegroundState) -> None:
        """Return None: there is nothing to store."""

    def commit(self, observed: None, masks: Masks, state: ForegroundState) -> None:
        state.object_count = masks.object_count
