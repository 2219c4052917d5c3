"""A memory's values from features that the query encoder has computed already, and masks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from .blocks import ResBlock, conv3, of_objects
from .convolve import convolve

STEM = (16, 32, 48, 64)  # channels at strides 2, 4, 8 and 16


class MaskEncoder(nn.Module):
    """The value of a frame with an object's mask, without a second backbone (STCN, NeurIPS 2021,
    section 3.2): a small stem sees the frame and the masks at full size; what it says, the frame's
    own value and the masks are joined on the keys' grid.

    channels        of the frame's value
    planes          mask planes M: the object, and what else the method shows
    value_channels  of what is stored
    stride          of the keys: 8 or 16
    dtype           of what leaves the stem; None, its own (see runtime/rounding.py)
    """

    def __init__(self, channels: int, planes: int, value_channels: int, stride: int) -> None:
        super().__init__()
        widths = STEM[: stride.bit_length() - 1]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 2, 1)
        self.mask_conv = nn.Conv2d(planes, widths[0], 3, 2, 1, bias=False)
        self.stem = nn.ModuleList(
            nn.Conv2d(before, after, 3, 2, 1) for before, after in pairwise(widths)
        )
        self.join = conv3(channels + widths[-1] + planes, value_channels)
        self.block1 = ResBlock(value_channels, value_channels)
        self.block2 = ResBlock(value_channels, value_channels)
        self.dtype: torch.dtype | None = None

    def forward(
        self,
        value: torch.Tensor,
        frame: torch.Tensor,
        planes: torch.Tensor,
        streams: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """value [B, C, h, w], frame [B, 3, H, W], planes [O, M, H, W] in 0..1 -> [O, Cv, h, w].

        streams  [O] int64, of which of the B frames every object is; None: all of one
        """
        cells = (value.shape[2], value.shape[3])
        stem = self.conv1.weight.dtype
        x = functional.relu(
            of_objects(self.conv1(frame.to(stem)), streams) + self.mask_conv(planes.to(stem))
        )
        if self.dtype is not None:
            x = x.to(self.dtype)
        for layer in self.stem:
            x = convolve(x, layer, relu=True)  # type: ignore[arg-type]
        covered = functional.adaptive_avg_pool2d(planes, cells).to(x.dtype)
        shared = of_objects(value, streams).expand(planes.shape[0], -1, -1, -1)
        return self.block2(self.block1(self.join(torch.cat((shared, x, covered), dim=1))))
