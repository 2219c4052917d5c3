"""What a track is fitted to, and what is drawn when it begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import TargetAwareConfig
from ..policies.placement import BLUR_CHANCE, DRAWS, blur_width, placement, seed_of
from ..policies.tracks import begin_samples, push_sample

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]  # features [D, h, w], bands [9, h, w], targets


class Samples:
    """One track's samples and its identity (models/target_aware/appearance.py has those of all).

    first      features [n, D, h, w], bands [n, 9, h, w] and targets [n, h, w] of its first frame
    embedding  [E], of its first mask
    born       the frame that it began with
    """

    def __init__(
        self, first: Planes, settings: dict[str, Any], rules: TargetAwareConfig, born: int
    ) -> None:
        self.rules = rules
        self.born = born
        self.embedding = np.zeros(settings["reid_channels"], np.float32)
        room, count = settings["samples"], len(first[0])
        self.banks = tuple(np.zeros((room, *each.shape[1:]), np.float32) for each in first)
        for bank, each in zip(self.banks, first, strict=True):
            bank[:count] = each
        self.weight = np.zeros(room, np.float32)
        begin_samples(rules, self.weight, count)
        self.filled = count

    def push(self, planes: Planes, *, verified: bool) -> None:
        """One more sample, in the next free place or in that of the lightest."""
        place = push_sample(self.rules, self.weight, self.filled, verified=verified)
        for bank, each in zip(self.banks, planes, strict=True):
            bank[place] = each
        self.filled = min(self.filled + 1, len(self.weight))

    def read(self, *, whole: bool) -> tuple[np.ndarray, ...]:
        """Features, bands, targets and weights of sum 1: of those that there are, or of all
        places, where the empty ones weigh nothing."""
        count = len(self.weight) if whole else self.filled
        weight = self.weight / self.weight.sum(dtype=np.float32)
        return (*(bank[:count] for bank in self.banks), weight[:count])


def draw_placements(
    frame: int, slot: int, count: int, side: int, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where augmentation puts a new track's object, [count, 2, 3] float32, and the weights of its
    blur [count, 2 radius + 1]: those that torch.rand draws from the same seed."""
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
