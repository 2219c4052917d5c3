"""Samples of a track, and the random augmentations of its first frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import TargetAwareConfig
from ..policies.placement import BLUR_CHANCE, DRAWS, blur_width, placement, seed_of
from ..policies.tracks import begin_samples, push_sample

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]  # features [D, h, w], bands [9, h, w], targets


class Samples:
    """Samples and embedding of one track (models/target_aware/appearance.py does this for all).

    first      features [n, D, h, w], bands [n, 9, h, w] and targets [n, h, w] of its first frame
    embedding  ReID vector [E] of its first mask
    born       index of its first frame
    """

    def __init__(
        self, first: Planes, settings: dict[str, Any], rules: TargetAwareConfig, born: int
    ) -> None:
        self.rules = rules
        self.born = born
        self.embedding = np.zeros(settings["reid_channels"], np.float32)
        room, count = settings["samples"], len(first[0])
        self.banks = tuple(np.zeros((room, *array.shape[1:]), np.float32) for array in first)
        for bank, array in zip(self.banks, first, strict=True):
            bank[:count] = array
        self.weight = np.zeros(room, np.float32)
        begin_samples(rules, self.weight, count)
        self.filled = count

    def push(self, planes: Planes, *, verified: bool) -> None:
        """Store a sample in the next free place, or in place of the one with the least weight."""
        place = push_sample(self.rules, self.weight, self.filled, verified=verified)
        for bank, array in zip(self.banks, planes, strict=True):
            bank[place] = array
        self.filled = min(self.filled + 1, len(self.weight))

    def read(self, *, whole: bool) -> tuple[np.ndarray, ...]:
        """Features, bands, targets, and weights normalised to sum 1.

        whole  include empty places, which have weight 0
        """
        count = len(self.weight) if whole else self.filled
        weight = self.weight / self.weight.sum(dtype=np.float32)
        return (*(bank[:count] for bank in self.banks), weight[:count])


def draw_placements(
    frame: int, slot: int, count: int, side: int, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the augmentations of a new track: affine placements [count, 2, 3] float32 and blur
    weights [count, 2 radius + 1], from the numbers that torch.rand draws with the same seed."""
    generator = np.random.RandomState(seed_of(frame, slot) % (1 << 32))
    words = generator.randint(0, 1 << 32, size=(count, DRAWS), dtype=np.uint32)
    draws = ((words & 0xFFFFFF) / (1 << 24)).tolist()  # as many bits as float32 has
    places = np.array([placement(draw[:5]) for draw in draws], dtype=np.float32)
    blurs = np.zeros((count, 2 * radius + 1), np.float32)
    blurs[:, radius] = 1
    for row, (*_, chance, amount) in zip(blurs, draws, strict=True):
        if chance < BLUR_CHANCE:
            row[:] = _gaussian(amount, side, radius)
    return places, blurs


def _gaussian(amount: float, side: int, radius: int) -> np.ndarray:
    sigma, reach = blur_width(amount, side)
    weights = np.zeros(2 * radius + 1, np.float32)
    offsets = np.arange(-reach, reach + 1, dtype=np.float32)
    powers = np.exp(-0.5 * np.square(offsets / np.float32(sigma)))
    weights[radius - reach : radius + reach + 1] = powers / powers.sum()
    return weights
