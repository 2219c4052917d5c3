"""Refinement of coarse scores per track to full-size logits: FRTM's network, or upsampling."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ...config import TargetAwareConfig
from ...types import Size
from ..backbone import Pyramid
from ..blocks import conv3, resize


class Reduction(nn.Module):
    """Target-independent part of TSE: conv1x1(relu(conv1x1 x))."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(functional.relu(self.conv1(x)))


class SegmentationEncoder(nn.Module):
    """TSE (target segmentation encoder) after its reduction:
    relu(conv3(relu(conv3(relu(conv3 [reduced, score])))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        joined = channels + 1
        self.conv1 = conv3(joined, joined)
        self.conv2 = conv3(joined, joined)
        self.conv3 = conv3(joined, channels)

    def forward(self, reduced: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """reduced [1, channels, h, w], score [K, 1, h, w] -> [K, channels, h, w]"""
        # conv1 is linear: its part on the frame's features is computed once for all targets.
        weight, bias = self.conv1.weight, self.conv1.bias
        x = functional.conv2d(reduced, weight[:, :-1], bias, padding=1)
        x = functional.relu(x + functional.conv2d(score, weight[:, -1:], padding=1))
        return functional.relu(self.conv3(functional.relu(self.conv2(x))))


class ResidualBlock(nn.Module):
    """RRB (refinement residual block): relu(h + conv3(relu(conv3 h))) with h = conv1 x; the last
    convolution has no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = conv3(channels, channels)
        self.conv3 = conv3(channels, channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        return functional.relu(x + self.conv3(functional.relu(self.conv2(x))))


class ChannelAttention(nn.Module):
    """CAB (channel attention block): a level's channels, gated by the global means of this level
    and the deeper one, plus the upsampled deeper level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, deeper: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
        """deeper [K, channels, h', w'], shallow [K, channels, h, w] -> [K, channels, h, w]"""
        pooled = torch.cat([_pool(shallow), _pool(deeper)], dim=1)
        gate = torch.sigmoid(self.conv2(functional.relu(self.conv1(pooled))))
        return shallow * gate + resize(deeper, shallow.shape[2:])


def _pool(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=(2, 3), keepdim=True)


class Level(nn.Module):
    """One level of the refiner: TSE, RRB, CAB with the deeper level, RRB."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = SegmentationEncoder(channels)
        self.block1 = ResidualBlock(channels)
        self.attention = ChannelAttention(channels)
        self.block2 = ResidualBlock(channels)

    def forward(
        self, deeper: torch.Tensor, reduced: torch.Tensor, coarse: torch.Tensor
    ) -> torch.Tensor:
        """deeper [K, channels, h', w'], reduced [1, channels, h, w], coarse [K, 1, ., .] ->
        [K, channels, h, w]"""
        x = self.block1(self.encoder(reduced, resize(coarse, reduced.shape[2:])))
        return self.block2(self.attention(deeper, x))


class Refiner(nn.Module):
    """FRTM's refinement network (Robinson et al., CVPR 2020, section 3.3), from layer4 to layer1.

    pyramid   channels of the backbone's four maps, layer1 first
    channels  width of the refiner

    (ours) All resampling is bilinear; FRTM's last two are bicubic.
    """

    def __init__(self, pyramid: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.reductions = nn.ModuleList(Reduction(width, channels) for width in reversed(pyramid))
        self.levels = nn.ModuleList(Level(channels) for _ in pyramid)
        self.upsample1 = conv3(channels, channels // 2)
        self.upsample2 = conv3(channels // 2, 1)

    def reduce(self, pyramid: Pyramid) -> list[torch.Tensor]:
        """Track-independent features [1, channels, h, w] per level, layer4 first."""
        maps = reversed([x for x in pyramid if x is not None])
        return [reduce(x) for reduce, x in zip(self.reductions, maps, strict=True)]

    def forward(
        self, coarse: torch.Tensor, reduced: list[torch.Tensor], size: Size
    ) -> torch.Tensor:
        """coarse [K, 1, h, w] and the maps of `reduce` -> logits [K, *size]"""
        x = _pool(reduced[0]).expand(coarse.shape[0], -1, -1, -1)
        for level, frame in zip(self.levels, reduced, strict=True):
            x = level(x, frame, coarse)
        height, width = x.shape[2:]
        x = functional.relu(self.upsample1(resize(x, (2 * height, 2 * width))))
        return self.upsample2(resize(x, size))[:, 0]


class NoRefiner(nn.Module):
    """Upsampled coarse scores as logits.

    (ours) Scores are fitted to labels 0 and 1; the logit is 4 (score - 1/2), the tangent of the
    logit function at 1/2.
    """

    def reduce(self, pyramid: Pyramid) -> list[torch.Tensor]:
        """Empty: no features of the frame are used."""
        return []

    def forward(
        self, coarse: torch.Tensor, reduced: list[torch.Tensor], size: Size
    ) -> torch.Tensor:
        """coarse [K, 1, h, w] -> logits [K, *size]"""
        return 4 * resize(coarse, size)[:, 0] - 2


def make_refiner(config: TargetAwareConfig, pyramid: tuple[int, ...]) -> Refiner | NoRefiner:
    """Make the configured refiner; pyramid: channels of the backbone's maps, layer1 first."""
    if config.refiner == "none":
        return NoRefiner()
    return Refiner(pyramid, config.refiner_channels)
