"""Random affine placement and blur for the augmentation of target-aware U-VOS."""

from __future__ import annotations

import math

FLIP_CHANCE = 1 / 3
ROTATION = 60.0  # maximum angle in degrees, either direction
SCALE = 0.7, 1.5
SHIFT = 0.2  # maximum shift as a fraction of the frame's side, either direction
BLUR_CHANCE = 2 / 5
BLUR = 0.001, 0.006  # standard deviation / longest side: 0.5 to 3 pixels at 473
DRAWS = 7  # random numbers in 0..1 per object: five for placement, blur or not, blur amount


def seed_of(frame: int, slot: int) -> int:
    """Random seed for a track that begins in this frame and slot."""
    return 256 * frame + slot


def placement(draw: list[float]) -> list[list[float]]:
    """Inverse affine matrix [2, 3] from five random numbers in 0..1.

    Columns 0 and 1 undo rotation, scale and mirroring; column 2 is the shift as a fraction of the
    sides.
    """
    flip, turn, size, down, right = draw
    angle = math.radians(ROTATION) * (2 * turn - 1)
    scale = SCALE[0] * (SCALE[1] / SCALE[0]) ** size
    mirror = -1.0 if flip < FLIP_CHANCE else 1.0
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    shift_x, shift_y = (SHIFT * (2 * value - 1) for value in (right, down))
    return [[mirror * cosine, mirror * sine, shift_x], [-sine, cosine, shift_y]]


def blur_width(amount: float, side: int) -> tuple[float, int]:
    """Gaussian blur's standard deviation and radius in pixels.

    amount  random number in 0..1
    side    longest side of the frame in pixels
    """
    sigma = side * (BLUR[0] + (BLUR[1] - BLUR[0]) * amount)
    return sigma, math.ceil(3 * sigma)
