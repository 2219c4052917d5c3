"""How the GPU kernels of `deform_conv` lay the image out before they sample it.

Channels come in sections: those that share both an offset group and a group of the convolution. A
section is cut into units of a fixed number of channels, the last filled up with zeros, and every
unit is an image of its own with its channels side by side and zeros around it:

    packed  [B, groups * units, H + 2 * MARGIN, W + 2 * MARGIN, unit]

So a sample of a unit is four wide loads without a test for the border, and neighbouring pixels of
one offset group, which look at neighbouring places, share memory lines. In channels-last memory
each would touch a line of its own, so an image that comes so is packed as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch

from .reference import Pair, as_pair

# A position is moved to [-2, size], so that both neighbours of one beyond the image lie in here.
MARGIN = 2
LARGEST_SIDE = 1 << 15  # so that pixels are counted in int32 and positions are exact in float32


@dataclass(frozen=True)
class Packing:
    """section  channels that share an offset group and a group      side   of an offset group
    unit     channels side by side in memory                      units  of a group
    chunks   units of a section                                   taps   of the kernel
    """

    section: int
    side: int
    unit: int
    chunks: int
    units: int
    taps: int

    def image_shape(self, x: torch.Tensor, groups: int) -> tuple[int, ...]:
        height, width = (size + 2 * MARGIN for size in x.shape[2:])
        return x.shape[0], groups * self.units, height, width, self.unit


def packing_of(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, groups: int, unit: int | None
) -> Packing:
    """The packing with units of so many channels; None chooses a power of two up to 64."""
    taps = weight.shape[2] * weight.shape[3]
    side = x.shape[1] // (offset.shape[1] // (2 * taps))
    per_group = x.shape[1] // groups
    section = gcd(side, per_group)
    unit = _unit_of(section) if unit is None else unit
    chunks = -(-section // unit)
    return Packing(section, side, unit, chunks, per_group // section * chunks, taps)


def _unit_of(section: int) -> int:
    """All of a narrow section, and of a wide one a part that leaves few zeros."""
    if section <= 16:
        return 1 << (section - 1).bit_length()
    whole = -(-section // 16) * 16
    return min(64, whole & -whole)


def side_objection(x: torch.Tensor, padding: Pair) -> str | None:
    """Why positions in this image cannot be counted."""
    sides = [size + 2 * margin for size, margin in zip(x.shape[2:], as_pair(padding), strict=True)]
    if max(sides) < LARGEST_SIDE:
        return None
    return f"wants sides below {LARGEST_SIDE}, padding included, given {sides[0]} x {sides[1]}"
