"""A mask as planes, one for each object: what both engines refuse of it, without torch."""

from __future__ import annotations

import math

from .errors import InputError
from .types import Size

SOFT, HARD = ("float32",), ("uint8", "bool")
THRESHOLD = 0.5  # of the background, which a soft mask does not give
HINT = "; a soft mask is float32 [O, H, W], a plane for each object"


def check_planes(shape: tuple[int, ...], size: Size, dtype: str) -> None:
    """Raise InputError unless planes are [O, H, W] of the frame's size, float32, uint8 or bool."""
    if shape[1:] != size:
        raise InputError(
            f"mask: wanted the frame's size, {list(size)} of object ids or "
            f"[O, {size[0]}, {size[1]}] with a plane for each object, given {list(shape)}"
        )
    if not 1 <= shape[0] <= 255:
        raise InputError(f"mask: wanted a plane for each of 1..255 objects, given {shape[0]}")
    if dtype not in (*SOFT, *HARD):
        raise InputError(
            f"mask: wanted dtype {', '.join(SOFT)} (soft), {' or '.join(HARD)} (0 and 1) for "
            f"[O, H, W], given {dtype}"
        )


def check_values(dtype: str, low: float, high: float) -> None:
    """Raise InputError unless the least and the greatest value of planes are in 0..1."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("mask: a soft mask holds NaN or infinity; wanted numbers in 0..1")
    if low < 0 or high > 1:
        what = "0..1 in a soft mask" if dtype in SOFT else "0 and 1 in [O, H, W]"
        raise InputError(
            f"mask: wanted {what}, given {low:g}..{high:g}; scale it, or give ids as [H, W]"
        )


def check_apart(shared: int) -> None:
    """Raise InputError where pixels belong to several planes of 0 and 1."""
    if shared:
        raise InputError(
            f"mask: {shared} pixels are 1 in several of its planes, wanted one object a pixel; "
            "give float32 scores, of which the greatest counts, or ids as [H, W]"
        )
