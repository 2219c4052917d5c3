"""Where augmentation puts an object, and how far it blurs it: numbers drawn, nothing of tensors."""

from __future__ import annotations

import math

FLIP_CHANCE = 1 / 3
ROTATION = 60.0  # degrees, either way
SCALE = 0.7, 1.5
SHIFT = 0.2  # of the frame's side, either way
BLUR_CHANCE = 2 / 5
BLUR = 0.001, 0.006  # standard deviation, of the frame's side: 0.5 to 3 pixels of 473
DRAWS = 7  # numbers in 0..1 for an object: five of its place, whether it is blurred, how much


def seed_of(frame: int, slot: int) -> int:
    """Of the draws for a track that begins with this frame in this slot."""
    return 256 * frame + slot


def placement(draw: list[float]) -> list[list[float]]:
    """[2, 3] from five numbers in 0..1: the matrix that undoes turning, scaling and mirroring, and
    the shift as a share of the sides."""
    flip, turn, size, down, right = draw
    angle = math.radians(ROTATION) * (2 * turn - 1)
    scale = SCALE[0] * (SCALE[1] / SCALE[0]) ** size
    mirror = -1.0 if flip < FLIP_CHANCE else 1.0
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    shift_x, shift_y = (SHIFT * (2 * value - 1) for value in (right, down))
    return [[mirror * cosine, mirror * sine, shift_x], [-sine, cosine, shift_y]]


def blur_width(amount: float, side: int) -> tuple[float, int]:
    """Standard deviation and radius in pixels, of a frame with that longest side, from a number in
    0..1."""
    sigma = side * (BLUR[0] + (BLUR[1] - BLUR[0]) * amount)
    return sigma, math.ceil(3 * sigma)
