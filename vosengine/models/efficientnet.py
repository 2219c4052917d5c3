"""EfficientNet-Lite without its classifier, with the interface of backbone.ResNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .backbone import Pyramid
from .convolve import convolve

# Repeats, kernel size, stride, expansion, channels out of every stage of lite0 (EfficientNet, ICML
# 2019, table 1; lite leaves out squeeze-and-excitation and has ReLU6 for swish).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}  # width, depth
STEM = 32  # channels, at every scale
LEVELS = (1, 2, 4, 6)  # the stages whose maps are strides 4, 8, 16 and 32
LEAST = 1e-4  # added to a cell's mean square before it divides


def scaled_stages(depth: str) -> list[tuple[int, int, int, int, int]]:
    """STAGES at a scale: channels to the nearest multiple of 8, repeats rounded up; the first and
    the last stage keep their repeats."""
    width, deep = SCALES[depth]
    scaled = []
    for index, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        wanted = width * channels
        rounded = max(8, int(wanted + 4) // 8 * 8)
        rounded += 8 * (rounded < 0.9 * wanted)
        ends = index in (0, len(STAGES) - 1)
        scaled.append(
            (repeats if ends else -int(-repeats * deep // 1), kernel, stride, expansion, rounded)
        )
    return scaled


def pad_same(x: torch.Tensor, kernel: int, stride: int, dilation: int = 1) -> torch.Tensor:
    """TensorFlow's SAME padding of a map [B, C, H, W] with zeros: an odd rest goes to the right and
    to the bottom, so a convolution with a stride gives ceil(side / stride) cells."""
    reach = dilation * (kernel - 1)
    rest = [reach - (side - 1) % stride for side in x.shape[2:]]
    top, left = (max(0, each) // 2 for each in rest)
    bottom, right = max(0, rest[0]) - top, max(0, rest[1]) - left
    return functional.pad(x, (left, right, top, bottom))


def normalise_cells(x: torch.Tensor) -> torch.Tensor:
    """Every cell of maps [..., C, h, w] divided by its root mean square over the channels."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = (wide.square().mean(dim=-3, keepdim=True) + LEAST).rsqrt()
    return (wide * size).to(x.dtype)


class MBConv(nn.Module):
    """1x1 to `expansion` times the channels, depthwise, 1x1 back without activation; around the
    identity where stride and channels allow it."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        dilation: int,
    ) -> None:
        super().__init__()
        inner = expansion * channels_in
        self.conv1: nn.Conv2d | None = None
        if expansion != 1:
            self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        padding = dilation * (kernel // 2) if stride == 1 else 0
        self.conv2 = nn.Conv2d(
            inner, inner, kernel, stride, padding, dilation, groups=inner, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inner, eps=1e-3)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels, eps=1e-3)
        self.identity = stride == 1 and channels_in == channels
        self.same = (kernel, stride) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x
        if self.conv1 is not None:
            inner = convolve(inner, self.conv1, self.bn1, relu6=True)
        if self.same is not None:
            inner = pad_same(inner, *self.same)
        inner = convolve(inner, self.conv2, self.bn2, relu6=True)
        return convolve(inner, self.conv3, self.bn3, add=x if self.identity else None)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite's stem and stages, optionally with mask channels beside the image.

    depth         "efficientnet_lite0" or "efficientnet_lite2"
    mask_channels further input planes, through a convolution of their own that starts at 0, summed
                  with the image's before the first norm
    layer4        None ends at stride 16; "strided" goes on to stride 32; "dilated" stays at 16, the
                  last stages with dilation 2
    key_stride    of r4: 16, or 8, where it is [r3, r4], each scaled to the same length in every
                  cell, the root of r3's channels; not together with layer4
    channels      of every map in the pyramid: 24, 40, 112 (152 at stride 8) and 320 in lite0
    dtype         of what leaves the stem; None, its own (see runtime/rounding.py)

    Its norms always run as in evaluation: their statistics are those of the pretraining, which
    small batches would only disturb.
    """

    def __init__(
        self,
        depth: str,
        mask_channels: int = 0,
        layer4: str | None = None,
        key_stride: int = 16,
    ) -> None:
        super().__init__()
        stages = scaled_stages(depth)[: 5 if layer4 is None else 7]
        self.conv1 = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.mask_conv = nn.Conv2d(mask_channels, STEM, 3, 2, bias=False) if mask_channels else None
        self.bn1 = nn.BatchNorm2d(STEM, eps=1e-3)
        built, channels_in = [], STEM
        for index, (repeats, kernel, stride, expansion, channels) in enumerate(stages):
            dilated = layer4 == "dilated" and index >= 5
            blocks = []
            for block in range(repeats):
                step = stride if block == 0 and not dilated else 1
                dilation = 2 if dilated and (block or index > 5) else 1
                blocks.append(MBConv(channels_in, channels, kernel, step, expansion, dilation))
                channels_in = channels
            built.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(built)
        self.joins = key_stride == 8
        levels = [stages[level][4] for level in LEVELS if level < len(stages)]
        if self.joins:
            levels[2] += levels[1]
        self.channels = tuple(levels)
        self.dtype: torch.dtype | None = None

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self

    def forward(self, frame: torch.Tensor, masks: torch.Tensor | None = None) -> Pyramid:
        """frame [B, 3, H, W]; masks [O, M, H, W] with mask channels: B = 1 is shared by all O."""
        stem = self.conv1.weight.dtype
        x = self.conv1(pad_same(frame.to(stem), 3, 2))
        if self.mask_conv is not None:
            assert masks is not None
            x = x + self.mask_conv(pad_same(masks.to(stem), 3, 2))
        if self.dtype is not None:
            x = x.to(self.dtype)
        x = functional.relu6(self.bn1(x))
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in LEVELS:
                maps.append(x)
        r2, r3, r4, *r5 = maps
        if self.joins:
            above = functional.interpolate(
                normalise_cells(r4), scale_factor=2, mode="bilinear", align_corners=False
            )
            # As wide maps go, stride 16 would count three times as much as stride 8.
            even = (r3.shape[1] / r4.shape[1]) ** 0.5
            r4 = torch.cat((normalise_cells(r3), even * above), dim=1)
        return Pyramid(r2, r3, r4, r5[0] if r5 else None)


class Neck(nn.Module):
    """Pretrained maps as a decoder that expects a ResNet's reads them: every cell brought to a root
    mean square of 1, a 1x1 convolution, ReLU. An EfficientNet-Lite's own maps have either sign and
    a size of about 8 at stride 4 and 2 at stride 32.

    pyramid   channels of the maps
    channels  after the convolutions, as many
    """

    def __init__(self, pyramid: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        pairs = zip(pyramid, channels, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(own, wanted, 1) for own, wanted in pairs)

    def forward(self, maps: Pyramid) -> tuple[torch.Tensor, ...]:
        """[B, C, h, w] of every level, the finest first, alike."""
        found = [x for x in maps if x is not None]
        pairs = zip(self.convs, found, strict=True)
        return tuple(functional.relu(conv(normalise_cells(x))) for conv, x in pairs)
