"""The 256 label colours of DAVIS and PASCAL VOC."""

from __future__ import annotations

import numpy as np


def _bit_reversal_palette() -> np.ndarray:
    """Distribute each id's bits over R, G and B, lowest bits to the highest: uint8 [256, 3]."""
    ids = np.arange(256)[:, None]
    channel = np.arange(3)
    palette = np.zeros((256, 3), np.uint8)
    for step in range(8):
        bit = (ids >> (3 * step + channel)) & 1
        palette |= (bit << (7 - step)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


DAVIS_PALETTE: np.ndarray = _bit_reversal_palette()
"""uint8 [256, 3] RGB, read-only; row i is the colour of object id i (0 is the background)."""
