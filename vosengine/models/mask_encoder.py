"""Memory values from the query encoder's features and masks, without a second backbone."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from .blocks import ResBlock, conv3, of_objects
from .convolve import convolve

STEM = (16, 32, 48, 64)  # stem channels at strides 2, 4, 8 and 16


class MaskEncoder(nn.Module):
    """Value encoder that reuses the query's features (STCN, NeurIPS 2021, section 3.2).

    A small stem encodes the frame and the masks at full size. Its output, the frame's value and
    the averaged masks are concatenated at the keys' stride and fused by two residual blocks.

    channels        channels of the frame's value
    planes          number M of mask planes: the object's, and others that the method adds
    value_channels  channels Cv of the output
    stride          stride of the keys, 8 or 16
    dtype           attribute: dtype of the stem's output; None: unchanged (runtime/rounding.py)
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

        streams  [O] int64, index into the B frames for each object; None: B = 1
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
