"""A caller's frames and masks, checked without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import SMALLEST_SIDE
from ..errors import InputError
from ..planes import (
    HARD,
    HINT,
    THRESHOLD,
    check_apart,
    check_planes,
    check_values,
)
from ..types import Prompt, Size


def check_frame(frame: Any) -> np.ndarray:
    """A frame as uint8 [H, W, 3]; raises InputError for anything else."""
    if not isinstance(frame, np.ndarray):
        raise InputError(f"frame: wanted a numpy array, given {type(frame).__name__}")
    if frame.dtype != np.uint8:
        hint = "; multiply by 255 and round" if frame.dtype.kind == "f" else ""
        raise InputError(f"frame: wanted dtype uint8, given {frame.dtype}{hint}")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"frame: wanted [H, W, 3] RGB, given {list(frame.shape)}")
    if min(frame.shape[:2]) < SMALLEST_SIDE:
        raise InputError(
            f"frame: wanted at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
            f"given {frame.shape[0]} x {frame.shape[1]}"
        )
    return frame


def check_mask(mask: Any, size: Size) -> Prompt[np.ndarray]:
    """A mask as a prompt: [H, W] object ids, or [O, H, W] with a plane for each object, as the
    engine's `check_mask` takes them; raises InputError for anything else."""
    if not isinstance(mask, np.ndarray):
        raise InputError(f"mask: wanted a numpy array, given {type(mask).__name__}")
    if mask.ndim == 3:
        mask = _labels_of_planes(mask, size)
    if mask.dtype.kind not in "uib":
        hint = HINT if mask.dtype.kind == "f" else ""
        raise InputError(f"mask: wanted an integer dtype (object ids), given {mask.dtype}{hint}")
    if mask.shape != size:
        raise InputError(f"mask: wanted the frame's size {list(size)}, given {list(mask.shape)}")
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > 255:
        raise InputError(
            f"mask: wanted object ids in 1..255 (0 is background), given {low}..{high}"
        )
    labels = mask.astype(np.uint8)
    present = np.bincount(labels.ravel(), minlength=256).nonzero()[0]
    return Prompt(labels, tuple(int(each) for each in present if each > 0))


def _labels_of_planes(planes: np.ndarray, size: Size) -> np.ndarray:
    dtype = planes.dtype.name
    check_planes(planes.shape, size, dtype)
    check_values(dtype, float(planes.min()), float(planes.max()))
    if dtype in HARD:
        check_apart(int((planes.sum(axis=0) > 1).sum()))
    found = np.where(planes.max(axis=0) > THRESHOLD, planes.argmax(axis=0) + 1, 0)
    labels: np.ndarray = found.astype(np.uint8)
    return labels
