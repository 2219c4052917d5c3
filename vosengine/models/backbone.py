"""ResNet-18/34/50/101 without the classifier, with torchvision's state dict keys."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from .convolve import convolve

# Blocks in layer1..layer4, and whether they are bottlenecks (He et al., CVPR 2016, table 1).
DEPTHS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class Pyramid(NamedTuple):
    """Feature maps of an encoder, named res2..res5 in the papers."""

    r2: torch.Tensor  # [B, C2, H / 4, W / 4]
    r3: torch.Tensor  # [B, C3, H / 8, W / 8]
    r4: torch.Tensor  # [B, C4, H / 16, W / 16], or [B, C4, H / 8, W / 8] with key_stride=8
    r5: torch.Tensor | None = None  # layer4: stride 32, or 16 if dilated; None without layer4


def make_norm(kind: str, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    """Norm layer: "batch", or "group" with gcd(channels, 8) channels per group."""
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
    """Shortcut of a residual block: the identity, or a strided 1x1 convolution and norm.

    With gradients enabled, x is subsampled before the convolution: the gradient of a strided 1x1
    convolution in oneDNN (torch 2.13) writes out of bounds on AVX-512 if the number of channels is
    not a multiple of 16.
    """
    if downsample is None:
        return x
    conv, norm = cast(nn.Conv2d, downsample[0]), downsample[1]
    if not torch.is_grad_enabled() or conv.stride == (1, 1):
        shortcut: torch.Tensor = downsample(x)
        return shortcut
    rows, columns = conv.stride
    sampled = x[:, :, ::rows, ::columns]
    projected: torch.Tensor = norm(functional.conv2d(sampled, conv.weight, conv.bias))
    return projected


class BasicBlock(nn.Module):
    """Basic residual block: two 3x3 convolutions."""

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
    """Bottleneck residual block: 1x1, 3x3, 1x1; the stride is on the 3x3, as in torchvision and
    STM."""

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
    """Fusion of r3 and r4 at stride 8: relu(norm(conv1x1 r3 + upsample(conv1x1 r4)))."""

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
    """ResNet encoder, optionally with mask channels as extra input.

    mask_channels  extra input planes with their own 7x7 convolution, added to the image's before
                   the first norm (conv1_m, conv1_o in STM's released code)
    layer4         None: left out; "strided": stride 32; "dilated": stride 16, dilation 2 from its
                   second block on, as in torchvision
    norm           "batch" or "group" (see make_norm)
    key_stride     stride of r4: 16, or 8 by `Fuse` with r3; 8 excludes layer4
    channels       attribute: channels of each map of the pyramid
    dtype          attribute: dtype of the stem's output; None: unchanged. The stem's convolutions
                   stay in float32 when the rest is in half precision (see runtime/rounding.py)
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
        """Encode frame [B, 3, H, W], with mask channels also masks [O, M, H, W]: B = O, or B = 1,
        which broadcasts over the objects."""
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
    """Initialise weights at random so that activations neither vanish nor explode with depth.

    Convolutions: He normal (fan-in), zero bias. The last norm of a residual block starts at
    1 / sqrt(blocks in its layer), so a layer multiplies the variance by at most e at any depth.
    Uses torch's global generator.
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
