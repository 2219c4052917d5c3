"""Checks of frame and mask shapes, dtypes and values, shared by both engines; without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import SMALLEST_SIDE
from .errors import InputError
from .types import Size

SOFT, HARD = ("float32",), ("uint8", "bool")
THRESHOLD = 0.5  # the background's score; a soft mask has no background plane
HINT = "; a soft mask is float32 [O, H, W], a plane for each object"


def check_frame_shape(shape: Sequence[int]) -> None:
    """Raise InputError unless a frame is [H, W, 3] and at least SMALLEST_SIDE x SMALLEST_SIDE."""
    if len(shape) != 3:
        raise InputError(f"frame: wanted rank 3, [H, W, 3] RGB, given shape {list(shape)}")
    if shape[2] != 3:
        hint = "; channels go last" if shape[0] == 3 else ""
        raise InputError(f"frame: wanted 3 channels, [H, W, 3] RGB, given {list(shape)}{hint}")
    if min(shape[:2]) < SMALLEST_SIDE:
        raise InputError(
            f"frame: wanted at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
            f"given {shape[0]} x {shape[1]}"
        )


def check_labels(shape: Sequence[int], size: Size, dtype: str) -> None:
    """Raise InputError unless labels [H, W] have the frame's size and an integer or bool dtype."""
    if "int" not in dtype and dtype != "bool":
        hint = HINT if "float" in dtype else ""
        raise InputError(f"mask: wanted an integer dtype (object ids), given {dtype}{hint}")
    if tuple(shape) != size:
        raise InputError(f"mask: wanted the frame's size {list(size)}, given {list(shape)}")


def check_ids(low: int, high: int) -> None:
    """Raise InputError unless the smallest and the largest object id are in 0..255."""
    if low < 0 or high > 255:
        raise InputError(
            f"mask: wanted object ids in 1..255 (0 is background), given {low}..{high}"
        )


def check_planes(shape: tuple[int, ...], size: Size, dtype: str) -> None:
    """Raise InputError unless planes are [O, H, W] at frame size, float32, uint8 or bool."""
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
    """Raise InputError unless the smallest and the largest value of planes are in 0..1."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("mask: a soft mask holds NaN or infinity; wanted numbers in 0..1")
    if low < 0 or high > 1:
        what = "0..1 in a soft mask" if dtype in SOFT else "0 and 1 in [O, H, W]"
        raise InputError(
            f"mask: wanted {what}, given {low:g}..{high:g}; scale it, or give ids as [H, W]"
        )


def check_apart(shared: int) -> None:
    """Raise InputError if binary planes overlap; `shared` is the number of pixels in several."""
    if shared:
        raise InputError(
            f"mask: {shared} pixels are 1 in several of its planes, wanted one object a pixel; "
            "give float32 scores, of which the greatest counts, or ids as [H, W]"
        )
