"""ResNet-18/34/50/101 without the classifier, with torchvision's state-dict names."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from .convolve import convolve

# Blocks of layer1..layer4, and whether they are bottlenecks (He et al., CVPR 2016, table 1).
DEPTHS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class Pyramid(NamedTuple):
    """Feature maps at strides 4, 8 and 16 (the papers' res2, res3, res4), and of layer4 if it is
    there: at stride 32, or at 16 where it is dilated."""

    r2: torch.Tensor
    r3: torch.Tensor
    r4: torch.Tensor
    r5: torch.Tensor | None = None


def make_norm(kind: str, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    """A norm layer: "batch", or "group", without running statistics: 8 channels a group, fewer
    where 8 does not divide."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels // math.gcd(channels, 8), channels)


def _downsample(
    channels_in: int, channels_out: int, stride: int, norm: str
) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(conv, make_norm(norm, channels_out))


def _shortcut(x: torch.Tensor, downsample: nn.Sequential | None) -> torch.Tensor:
    """What a block adds to its branch. Where gradients are wanted, the pixels that a 1x1
    convolution with a stride looks at are taken out first: its gradient in oneDNN (torch 2.13)
    writes past its memory on processors with AVX-512 where channels are no multiple of 16."""
    if downsample is None:
        return x
    conv, norm = cast(nn.Conv2d, downsample[0]), downsample[1]
    if not torch.is_grad_enabled() or conv.stride == (1, 1):
        shortcut: torch.Tensor = downsample(x)
        return shortcut
    rows, columns = conv.stride
    looked_at = x[:, :, ::rows, ::columns]
    projected: torch.Tensor = norm(functional.conv2d(looked_at, conv.weight, conv.bias))
    return projected


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around the identity."""

    expansion = 1

    def __init__(
        self, channels_in: int, width: int, stride: int, dilation: int = 1, norm: str = "batch"
    ) -> None:
        super().__init__()
        reach = dilation, dilation
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, *reach, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, *reach, bias=False)
        self.bn2 = make_norm(norm, width)
        self.downsample = _downsample(channels_in, width, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = convolve(x, self.conv1, self.bn1, relu=True)
        shortcut = _shortcut(x, self.downsample)
        return convolve(branch, self.conv2, self.bn2, add=shortcut, relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision and STM have it), 1x1 around the identity."""

    expansion = 4

    def __init__(
        self, channels_in: int, width: int, stride: int, dilation: int = 1, norm: str = "batch"
    ) -> None:
        super().__init__()
        reach = dilation, dilation
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, *reach, bias=False)
        self.bn2 = make_norm(norm, width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = make_norm(norm, 4 * width)
        self.downsample = _downsample(channels_in, 4 * width, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = convolve(x, self.conv1, self.bn1, relu=True)
        branch = convolve(branch, self.conv2, self.bn2, relu=True)
        shortcut = _shortcut(x, self.downsample)
        return convolve(branch, self.conv3, self.bn3, add=shortcut, relu=True)


class Fuse(nn.Module):
    """Stride 16 joined with stride 8, at stride 8: the finer grid, the wider view."""

    def __init__(self, channels3: int, channels4: int, norm: str) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels3, channels4, 1, bias=False)
        self.conv4 = nn.Conv2d(channels4, channels4, 1, bias=False)
        self.norm = make_norm(norm, channels4)

    def forward(self, r3: torch.Tensor, r4: torch.Tensor) -> torch.Tensor:
        above = functional.interpolate(
            self.conv4(r4), scale_factor=2, mode="bilinear", align_corners=False
        )
        return functional.relu(self.norm(self.conv3(r3) + above))


class ResNet(nn.Module):
    """A ResNet's stem and layers, optionally with mask channels beside the image.

    mask_channels  further input planes, through a 7x7 convolution of their own, summed with the
                   image's before the first norm (STM's released code: conv1_m, conv1_o)
    layer4         None leaves it out; "strided" goes on to stride 32; "dilated" stays at 16, with
                   dilation 2 from its second block on, as torchvision has it
    norm           "batch", or "group" (see make_norm)
    key_stride     of r4: 16, or 8, where it is joined with r3; not together with layer4
    channels       of every map in the pyramid
    dtype          of what leaves the stem; None, its own: its convolutions stay in float32 where
                   the rest is rounded to half precision (see runtime/rounding.py)
    """

    def __init__(
        self,
        depth: str,
        width: int = 64,
        mask_channels: int = 0,
        layer4: str | None = None,
        norm: str = "batch",
        key_stride: int = 16,
    ) -> None:
        super().__init__()
        blocks, bottleneck = DEPTHS[depth]
        kind: type[BasicBlock | Bottleneck] = Bottleneck if bottleneck else BasicBlock
        scales = (1, 2, 4) if layer4 is None else (1, 2, 4, 8)
        self.channels = tuple(width * kind.expansion * scale for scale in scales)
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.mask_conv = (
            nn.Conv2d(mask_channels, width, 7, 2, 3, bias=False) if mask_channels else None
        )
        self.bn1 = make_norm(norm, width)
        self.layer1 = _layer(kind, width, width, blocks[0], 1, norm=norm)
        self.layer2 = _layer(kind, self.channels[0], 2 * width, blocks[1], 2, norm=norm)
        self.layer3 = _layer(kind, self.channels[1], 4 * width, blocks[2], 2, norm=norm)
        self.layer4: nn.Sequential | None = None
        if layer4 is not None:
            stride, dilation = {"strided": (2, 1), "dilated": (1, 2)}[layer4]
            self.layer4 = _layer(
                kind, self.channels[2], 8 * width, blocks[3], stride, dilation, norm
            )
        joins = key_stride == 8
        self.fuse = Fuse(self.channels[1], self.channels[2], norm) if joins else None
        self.dtype: torch.dtype | None = None

    def forward(self, frame: torch.Tensor, masks: torch.Tensor | None = None) -> Pyramid:
        """frame [B, 3, H, W]; masks [O, M, H, W] with mask channels: B = 1 is shared by all O."""
        stem = self.conv1.weight.dtype
        x = self.conv1(frame.to(stem))
        if self.mask_conv is not None:
            assert masks is not None
            x = x + self.mask_conv(masks.to(stem))
        if self.dtype is not None:
            x = x.to(self.dtype)
        x = functional.relu(self.bn1(x))
        x = functional.max_pool2d(x, 3, 2, 1)
        r2 = self.layer1(x)
        r3 = self.layer2(r2)
        r4 = self.layer3(r3)
        r5 = None if self.layer4 is None else self.layer4(r4)
        return Pyramid(r2, r3, r4 if self.fuse is None else self.fuse(r3, r4), r5)


def _layer(
    kind: type[BasicBlock | Bottleneck],
    channels_in: int,
    width: int,
    blocks: int,
    stride: int,
    dilation: int = 1,
    norm: str = "batch",
) -> nn.Sequential:
    first = kind(channels_in, width, stride, norm=norm)
    rest = [kind(width * kind.expansion, width, 1, dilation, norm) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def initialise(module: nn.Module) -> None:
    """Seedable random weights whose activations neither vanish nor explode, layer by layer.

    He's rule for convolutions; the last norm of a residual block starts at 1 / sqrt(blocks in its
    layer), so that a layer multiplies the variance by at most e, however deep it is.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Sequential):
            blocks = [block for block in layer if isinstance(block, (BasicBlock, Bottleneck))]
            for block in blocks:
                last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
                nn.init.constant_(last.weight, len(blocks) ** -0.5)
