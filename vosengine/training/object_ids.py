"""Renumbering of object ids in a clip."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def renumber(
    masks: NDArray[np.uint8], most: int = 255, rng: np.random.Generator | None = None
) -> NDArray[np.uint8]:
    """Renumber the ids in masks [T, H, W] to 1..N without gaps, keeping their order.

    Of more than `most` objects a random subset is kept (without `rng`, the lowest ids); the others
    become background.
    """
    present = np.flatnonzero(count_ids(masks)[1:]) + 1
    highest = int(present[-1]) if len(present) else 0
    if len(present) > most:
        chosen = present[:most] if rng is None else rng.choice(present, most, replace=False)
        present = np.sort(chosen)
    if np.array_equal(present, np.arange(1, len(present) + 1)) and highest <= len(present):
        return masks
    table = np.zeros(256, np.uint8)
    table[present] = np.arange(1, len(present) + 1)
    return np.asarray(table[masks], np.uint8)


def count_ids(masks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number of pixels [256] int64 of each id."""
    if not masks.size:
        return np.zeros(256, np.int64)
    # Ten times as fast as np.bincount, which converts to int64 first.
    flat = np.ascontiguousarray(masks).reshape(len(masks), -1)
    return cv2.calcHist([flat], [0], None, [256], [0, 256]).ravel().astype(np.int64)
