"""Validation of frames and masks, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from ..planes import (
    HARD,
    THRESHOLD,
    check_apart,
    check_frame_shape,
    check_ids,
    check_labels,
    check_planes,
    check_values,
)
from ..types import Prompt, Size


def check_frame(frame: Any) -> np.ndarray:
    """Check that a frame is uint8 [H, W, 3]. Raises InputError otherwise."""
    if not isinstance(frame, np.ndarray):
        raise InputError(f"frame: wanted a numpy array, given {type(frame).__name__}")
    if frame.dtype != np.uint8:
        hint = "; multiply by 255 and round" if frame.dtype.kind == "f" else ""
        raise InputError(f"frame: wanted dtype uint8, given {frame.dtype}{hint}")
    check_frame_shape(frame.shape)
    return frame


def check_mask(mask: Any, size: Size) -> Prompt[np.ndarray]:
    """Convert a mask to a prompt: [H, W] object ids, or [O, H, W] with one plane per object, as in
    the engine's `check_mask`. Raises InputError otherwise."""
    if not isinstance(mask, np.ndarray):
        raise InputError(f"mask: wanted a numpy array, given {type(mask).__name__}")
    if mask.ndim == 3:
        mask = _labels_of_planes(mask, size)
    check_labels(mask.shape, size, mask.dtype.name)
    check_ids(int(mask.min()), int(mask.max()))
    labels = mask.astype(np.uint8)
    present = np.bincount(labels.ravel(), minlength=256).nonzero()[0]
    return Prompt(labels, tuple(int(i) for i in present if i > 0))


def _labels_of_planes(planes: np.ndarray, size: Size) -> np.ndarray:
    dtype = planes.dtype.name
    check_planes(planes.shape, size, dtype)
    check_values(dtype, float(planes.min()), float(planes.max()))
    if dtype in HARD:
        check_apart(int((planes.sum(axis=0) > 1).sum()))
    plane_ids = np.where(planes.max(axis=0) > THRESHOLD, planes.argmax(axis=0) + 1, 0)
    labels: np.ndarray = plane_ids.astype(np.uint8)
    return labels
