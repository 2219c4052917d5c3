"""MUNet: STM matching with a query weighted by motion and its confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ..config import MUNetConfig
from ..kernels import correlate_frames
from ..proposals import Proposals
from ..types import Masks, Scores
from .backbone import initialise
from .blocks import Decoder, KeyValue, MatchingState, Observed, make_key, of_objects
from .encoder import make_encoder
from .mask_encoder import MaskEncoder
from .matching import MatchingMethod

# Input channels, output channels and kernel size of the motion network (section 3.2, table 1), all
# stride 1. The table gives neither norm nor activation; (ours) bias, "same" padding, ReLU after all
# but the last.
MOTION_LAYERS = (
    (3, 3, 7),
    (3, 16, 1),
    (16, 16, 3),
    (16, 32, 1),
    (32, 32, 3),
    (32, 32, 1),
    (32, 64, 3),
)


class MUNetFeatures(NamedTuple):
    """Per-frame features of MUNet, independent of the previous frame and of objects."""

    frame: torch.Tensor  # [B, 3, H, W] prepared; second input of the reference encoder
    semantic: torch.Tensor  # [B, D, h, w], the paper's F^s
    reduced: torch.Tensor  # [B, D / 4, h, w], correlated between neighbouring frames
    skip3: torch.Tensor  # [B, 256, 2h, 2w]
    skip2: torch.Tensor  # [B, 256, 4h, 4w]


CLOSED = -3.0  # initial logit of the attention: F^s is scaled by 1 + sigmoid(-3) = 1.05


class MotionAttention(nn.Module):
    """Encode motion (d_x, d_y, confidence) as F^m and fuse it into the semantic feature F^s.

    motion [B, 3, h, w], semantic [B, D, h, w] -> [B, D, h, w]

    attention  F^s * sigmoid(conv1x1 F^m) + F^s   (equation 3)
    add        F^s + F^m                          (table 4, row f)
    """

    def __init__(self, channels: int, fusion: str) -> None:
        super().__init__()
        convs = [nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in MOTION_LAYERS]
        self.layers = nn.ModuleList(convs)
        self.expand = nn.Conv2d(MOTION_LAYERS[-1][1], channels, 1)  # the table's layer 8
        self.attention = nn.Conv2d(channels, 1, 1) if fusion == "attention" else None

    def forward(self, motion: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        x = motion
        for layer in self.layers:
            x = functional.relu(layer(x))
        if self.attention is None:
            return semantic + self.expand(x)
        # expand and attention are both linear and 1x1: their product is one convolution to 1
        # channel, without the intermediate feature of D channels.
        rows = self.attention.weight.flatten(1)  # [1, D]
        weight = rows @ self.expand.weight.flatten(1)
        bias = self.attention.bias
        if bias is not None and self.expand.bias is not None:
            bias = bias + rows @ self.expand.bias
        score = functional.conv2d(x, weight[:, :, None, None], bias)
        return semantic * torch.sigmoid(score) + semantic


class MUNet(MatchingMethod[MUNetFeatures]):
    """STM whose query key and value are computed from F^s after motion attention; uses the
    previous frame."""

    sees = (-1, 0)
    features = MUNetFeatures

    def __init__(self, config: MUNetConfig) -> None:
        super().__init__()
        self.config: MUNetConfig = config
        self.size = config.size
        channels = config.key_channels, config.value_channels
        backbone = config.backbone, config.width
        options: Any = {"norm": config.norm, "key_stride": config.key_stride}
        shared = config.memory_encoder == "shared"
        self.query_encoder = make_encoder(*backbone, **options)
        if shared:
            self.observes = ("semantic",)
            self.mask_encoder = MaskEncoder(channels[1], 1, channels[1], config.key_stride)
        else:
            self.reference_encoder = make_encoder(*backbone, mask_channels=1, **options)
        pyramid = self.query_encoder.channels
        self.reduce = nn.Conv2d(pyramid[2], pyramid[2] // 4, 1)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.motion = MotionAttention(pyramid[2], config.fusion)
        self.query_head = KeyValue(pyramid[2], *channels, size=1 if shared else 3)
        if not shared:
            self.reference_head = KeyValue(pyramid[2], *channels)
        joined = 2 * config.value_channels + config.read_masks
        self.decoder = Decoder(
            joined, pyramid, config.decoder_channels, fine_channels=config.fine_channels
        )
        initialise(self)

    def start_gently(self) -> None:
        """Start with nearly no influence of motion on pretrained features."""
        attention = self.motion.attention
        if self.config.similarity == "cosine" and attention is not None:
            attention.weight.zero_()
            attention.bias.fill_(CLOSED)  # type: ignore[union-attr]

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> MUNetFeatures:
        pyramid = self.query_encoder(frames)
        reduced = self.reduce(pyramid.r4)
        return MUNetFeatures(frames, pyramid.r4, reduced, *self.decoder.skips(pyramid))

    def segment(self, seen: Sequence[MUNetFeatures], state: MatchingState) -> Scores:
        previous, now = seen
        motion = correlate_frames(
            now.reduced,
            previous.reduced,
            radius=self.config.radius,
            temperature=self.temperature,
            outside=self.config.outside,
        )
        key, value = self.query_head(self.motion(motion, now.semantic))
        key = make_key(key, self.config.similarity)
        return self._decode(key, value, (now.skip3, now.skip2), state)

    def observe(
        self, seen: Sequence[MUNetFeatures], masks: Masks, state: MatchingState
    ) -> Observed | None:
        """Key and value to store for each object; None without objects."""
        if masks.object_count == 0:
            return None
        now = seen[-1]
        planes = masks.probabilities[1:, None].to(now.frame.dtype)
        if self.config.memory_encoder == "shared":
            key, value = self.query_head(now.semantic)
            key = of_objects(make_key(key, self.config.similarity), masks.streams)
            value = self.mask_encoder(value, now.frame, planes, masks.streams)
        else:
            key, value = self.reference_head(
                self.reference_encoder(of_objects(now.frame, masks.streams), planes).r4
            )
            key = make_key(key, self.config.similarity)
        return self._stored(key, value, planes)
