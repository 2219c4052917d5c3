"""ClickNet: a frame, the previous mask and hints -> the mask of one object.

The pretrained backbone's input is the frame only; the hints are fused in the decoder, at strides
16, 8 and 4, so that a further click runs only the decoder. Discs for clicks and the previous mask
as inputs follow RITM (Sofiiuk et al., arXiv 2102.06583); the box is a further plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ..config import LITE_MEAN, LITE_STD
from ..config.checks import check
from ..models.backbone import Pyramid
from ..models.blocks import ResBlock, conv3, upsample
from ..models.efficientnet import EfficientNetLite, normalise_cells

PLANES = 4  # previous mask, discs of positive clicks, discs of negative clicks, box
STRIDE = 16
FIRST_ANSWERS = 0.02  # initial scale of the last layer's weights


@dataclass(frozen=True)
class ClickConfig:
    """Configuration of the click network.

    backbone  EfficientNet-Lite
    mean, std input normalisation, RGB in 0..1
    channels  decoder channels at strides 16, 8 and 4
    blocks    residual blocks at strides 16, 8 and 4
    stem      channels at strides 2, 4, 8 and 16 of the encoder of frame and planes
    size      side of the input crop in pixels, a multiple of 16
    radius    radius of a click's disc, in pixels of the crop

    Raises  ConfigError for a value out of range.
    """

    backbone: str = "efficientnet_lite0"
    mean: tuple[float, float, float] = LITE_MEAN
    std: tuple[float, float, float] = LITE_STD
    channels: tuple[int, int, int] = (96, 64, 32)
    blocks: tuple[int, int, int] = (4, 2, 2)
    stem: tuple[int, int, int, int] = (16, 32, 48, 64)
    size: int = 320
    radius: int = 5

    def __post_init__(self) -> None:
        check(self.size > 0 and self.size % STRIDE == 0, "size", "a multiple of 16", self.size)
        check(self.radius >= 1, "radius", "1 or more", self.radius)
        for name in ("channels", "blocks", "stem"):
            check(min(getattr(self, name)) >= 1, name, "1 or more each", getattr(self, name))


class Seen(NamedTuple):
    """The decoder's inputs that do not depend on the hints.

    frame       [B, 3, H, W] normalised
    r2, r3, r4  the backbone's maps at strides 4, 8 and 16, every cell normalised
    """

    frame: torch.Tensor
    r2: torch.Tensor
    r3: torch.Tensor
    r4: torch.Tensor


class Level(nn.Module):
    """Decoder level: sum of upsampled coarser level, backbone and stem maps; residual blocks."""

    def __init__(self, above: int, backbone: int, stem: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.above = nn.Conv2d(above, channels, 1) if above else None
        self.backbone = nn.Conv2d(backbone, channels, 1)
        self.stem = nn.Conv2d(stem, channels, 1)
        self.blocks = nn.Sequential(*(ResBlock(channels, channels) for _ in range(blocks)))

    def forward(
        self, above: torch.Tensor | None, backbone: torch.Tensor, stem: torch.Tensor
    ) -> torch.Tensor:
        x = self.backbone(backbone) + self.stem(stem)
        if self.above is not None and above is not None:
            x = x + upsample(self.above(above), 2)
        joined: torch.Tensor = self.blocks(x)
        return joined


class ClickNet(nn.Module):
    """The click network: `encode` once per crop, `forward` for every set of hints."""

    def __init__(self, config: ClickConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = EfficientNetLite(config.backbone)
        r2, r3, r4 = self.backbone.channels
        widths = (3 + PLANES, *config.stem)
        stem = [nn.Conv2d(before, after, 3, 2, 1) for before, after in pairwise(widths)]
        # No norms, so that the hints keep the scale of the backbone's cells.
        for conv in stem:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.stem = nn.ModuleList(stem)
        top, middle, fine = config.channels
        _, s4, s8, s16 = config.stem
        self.level16 = Level(0, r4, s16, top, config.blocks[0])
        self.level8 = Level(top, r3, s8, middle, config.blocks[1])
        self.level4 = Level(middle, r2, s4, fine, config.blocks[2])
        self.predict = conv3(fine, 4)

    @torch.no_grad()
    def start_gently(self) -> None:
        """Initialise for training: residual blocks as the identity, small initial logits."""
        for module in self.modules():
            if isinstance(module, ResBlock):
                module.conv2.weight.zero_()
        self.predict.weight.mul_(FIRST_ANSWERS)

    def encode(self, frame: torch.Tensor) -> Seen:
        """Features of frames [B, 3, H, W], normalised, with sides that are multiples of 16."""
        return as_seen(frame, self.backbone(frame))

    def forward(self, seen: Seen, planes: torch.Tensor) -> torch.Tensor:
        """Logits [B, H / 2, W / 2] for hints as planes [B, PLANES, H, W] of 0 and 1."""
        x = torch.cat((seen.frame, planes), dim=1)
        stems = []
        for conv in self.stem:
            x = functional.relu(conv(x))
            stems.append(x)
        x = self.level16(None, seen.r4, stems[3])
        x = self.level8(x, seen.r3, stems[2])
        x = self.level4(x, seen.r2, stems[1])
        logits = self.predict(functional.relu(x))
        return functional.pixel_shuffle(logits, 2)[:, 0]


def as_seen(frame: torch.Tensor, maps: Pyramid) -> Seen:
    """The decoder's inputs from a frame and its backbone maps, normalised per cell."""
    return Seen(frame, *(normalise_cells(x) for x in (maps.r2, maps.r3, maps.r4)))
