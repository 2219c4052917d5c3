"""EfficientNet-Lite without its classifier, with the interface of backbone.ResNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .backbone import Pyramid
from .convolve import convolve

# Repeats, kernel size, stride, expansion and output channels of each stage of lite0 (EfficientNet,
# ICML 2019, table 1; lite has no squeeze-and-excitation, and ReLU6 instead of swish).
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
STEM = 32  # channels of the stem, at every scale
LEVELS = (1, 2, 4, 6)  # stages whose outputs have strides 4, 8, 16 and 32
EPSILON = 1e-4  # added to the mean square in normalise_cells


def scaled_stages(depth: str) -> list[tuple[int, int, int, int, int]]:
    """Scale STAGES: channels to the nearest multiple of 8 (at least 0.9 times the exact number),
    repeats rounded up; the first and the last stage keep their repeats."""
    width, deep = SCALES[depth]
    scaled = []
    for index, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        exact = width * channels
        rounded = max(8, int(exact + 4) // 8 * 8)
        rounded += 8 * (rounded < 0.9 * exact)
        ends = index in (0, len(STAGES) - 1)
        scaled.append(
            (repeats if ends else -int(-repeats * deep // 1), kernel, stride, expansion, rounded)
        )
    return scaled


def pad_same(x: torch.Tensor, kernel: int, stride: int, dilation: int = 1) -> torch.Tensor:
    """Zero-pad x [B, C, H, W] like TensorFlow's SAME: a strided convolution then gives
    ceil(side / stride) cells. An odd total has the extra pixel at the right and the bottom."""
    reach = dilation * (kernel - 1)
    total = [max(0, reach - (side - 1) % stride) for side in x.shape[2:]]
    top, left = (pixels // 2 for pixels in total)
    bottom, right = total[0] - top, total[1] - left
    return functional.pad(x, (left, right, top, bottom))


def normalise_cells(x: torch.Tensor) -> torch.Tensor:
    """RMS norm over the channels: [..., C, h, w] divided by sqrt(mean square + EPSILON)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.square().mean(dim=-3, keepdim=True) + EPSILON).rsqrt()
    return (wide * scale).to(x.dtype)


class MBConv(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution, linear 1x1 projection.

    The shortcut is the identity if stride is 1 and channels are unchanged, else absent.
    """

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
    """EfficientNet-Lite encoder, optionally with mask channels as extra input.

    depth          "efficientnet_lite0" or "efficientnet_lite2"
    mask_channels  extra input planes with their own 3x3 convolution, added to the image's before
                   the first norm
    layer4         None: ends at stride 16; "strided": stride 32; "dilated": stride 16, dilation 2
                   in the last two stages
    key_stride     stride of r4: 16, or 8, where r4 is the concatenation of r3 and the upsampled r4,
                   both scaled to length sqrt(channels of r3) in every cell; 8 excludes layer4
    channels       attribute: channels of each map of the pyramid: 24, 40, 112 (152 at stride 8) and
                   320 in lite0
    dtype          attribute: dtype of the stem's output; None: unchanged (runtime/rounding.py)

    Batch norms always run in evaluation mode: they keep the pretrained statistics, which small
    training batches would degrade.
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
        modules, channels_in = [], STEM
        for index, (repeats, kernel, stride, expansion, channels) in enumerate(stages):
            dilated = layer4 == "dilated" and index >= 5
            blocks = []
            for block in range(repeats):
                step = stride if block == 0 and not dilated else 1
                dilation = 2 if dilated and (block or index > 5) else 1
                blocks.append(MBConv(channels_in, channels, kernel, step, expansion, dilation))
                channels_in = channels
            modules.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(modules)
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
        """Encode frame [B, 3, H, W], with mask channels also masks [O, M, H, W]: B = O, or B = 1,
        which broadcasts over the objects."""
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
            # Equal norms: by its number of channels r4 would weigh three times as much as r3.
            balance = (r3.shape[1] / r4.shape[1]) ** 0.5
            r4 = torch.cat((normalise_cells(r3), balance * above), dim=1)
        return Pyramid(r2, r3, r4, r5[0] if r5 else None)


class Neck(nn.Module):
    """Adapter from EfficientNet-Lite maps to a decoder made for a ResNet's: RMS norm per cell, 1x1
    convolution, ReLU. Raw maps are signed, with an RMS of about 8 at stride 4 and 2 at stride 32.

    pyramid   input channels per level
    channels  output channels per level
    """

    def __init__(self, pyramid: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        pairs = zip(pyramid, channels, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in pairs)

    def forward(self, maps: Pyramid) -> tuple[torch.Tensor, ...]:
        """Adapted maps [B, channels[i], h_i, w_i], finest level first."""
        present = [x for x in maps if x is not None]
        pairs = zip(self.convs, present, strict=True)
        return tuple(functional.relu(conv(normalise_cells(x))) for conv, x in pairs)
