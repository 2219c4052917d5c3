"""Object ids of a clip: without gaps, and no more of them than wanted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def renumber(
    masks: NDArray[np.uint8], most: int = 255, rng: np.random.Generator | None = None
) -> NDArray[np.uint8]:
    """The masks [T, H, W] with ids 1..N without gaps, in the order of the ids they had.

    Where there are more than `most` objects, `rng` chooses which stay (without it, those of the
    lowest ids); the others become background.
    """
    present = np.flatnonzero(np.bincount(masks.ravel(), minlength=256)[1:]) + 1
    if len(present) > most:
        chosen = present[:most] if rng is None else rng.choice(present, most, replace=False)
        present = np.sort(chosen)
    if np.array_equal(present, np.arange(1, len(present) + 1)) and masks.max(initial=0) <= len(
        present
    ):
        return masks
    table = np.zeros(256, np.uint8)
    table[present] = np.arange(1, len(present) + 1)
    return np.asarray(table[masks], np.uint8)
