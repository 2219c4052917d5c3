"""Memory layout of the image that the GPU kernels of `deform_conv` sample.

A section is a set of channels that share both an offset group and a convolution group. Sections are
split into units of a fixed number of channels, the last one padded with zeros. Every unit is stored
as an image with contiguous channels and a border of zeros:

    packed  [B, groups * units, H + 2 * MARGIN, W + 2 * MARGIN, unit]

A sample of a unit is then four wide loads without a border test, and neighbouring pixels of an
offset group, which sample neighbouring places, share cache lines. Channels-last images are packed
as well: there each pixel would touch a cache line of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch

from .reference import Pair, as_pair

# Positions are clamped to [-2, size], so that both neighbours of one beyond the image are zeros.
MARGIN = 2
LARGEST_SIDE = 1 << 15  # pixel indices fit in int32, positions are exact in float32


@dataclass(frozen=True)
class Packing:
    """Sizes of the packed layout.

    section  channels that share an offset group and a convolution group
    side     channels of an offset group
    unit     contiguous channels
    units    units of a convolution group
    chunks   units of a section
    taps     taps of the kernel
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
    """Return the packing with units of `unit` channels; None chooses a power of two up to 64."""
    taps = weight.shape[2] * weight.shape[3]
    side = x.shape[1] // (offset.shape[1] // (2 * taps))
    per_group = x.shape[1] // groups
    section = gcd(side, per_group)
    unit = _unit_of(section) if unit is None else unit
    chunks = -(-section // unit)
    return Packing(section, side, unit, chunks, per_group // section * chunks, taps)


def _unit_of(section: int) -> int:
    """Return the channels per unit: a whole narrow section, or a part with little padding."""
    if section <= 16:
        return 1 << (section - 1).bit_length()
    whole = -(-section // 16) * 16
    return min(64, whole & -whole)


def side_unsupported(x: torch.Tensor, padding: Pair) -> str | None:
    """Return the unsupported reason for a padded side of LARGEST_SIDE or more, or None."""
    sides = [size + 2 * margin for size, margin in zip(x.shape[2:], as_pair(padding), strict=True)]
    if max(sides) < LARGEST_SIDE:
        return None
    return f"wants sides below {LARGEST_SIDE}, padding included, given {sides[0]} x {sides[1]}"
