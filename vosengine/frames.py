"""Frames and masks: input checks, resizing, padding, normalisation, and the inverse."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from .errors import InputError
from .kernels import prepare_frame
from .planes import (
    HARD,
    THRESHOLD,
    check_apart,
    check_frame_shape,
    check_ids,
    check_labels,
    check_planes,
    check_values,
)
from .types import Geometry, Size

Array = np.ndarray | torch.Tensor


def check_frame(frame: Array) -> torch.Tensor:
    """Check a frame and return it as a tensor [H, W, 3], uint8, or float32 in 0..1.

    The data is copied only if the array is read-only or has negative strides.

    Raises  InputError for any other type, dtype, rank or channel count, a size below 32 x 32, or a
            float frame with a NaN or a value outside 0..1.
    """
    if not isinstance(frame, Array):
        raise InputError(
            f"frame: wanted a numpy array or a torch tensor, given {type(frame).__name__}"
        )
    if str(frame.dtype).removeprefix("torch.") not in ("uint8", "float32"):
        raise InputError(f"frame: wanted dtype uint8 or float32, given {frame.dtype}")
    if isinstance(frame, np.ndarray):
        if min(frame.strides, default=0) < 0:
            frame = np.ascontiguousarray(frame)  # torch: no negative strides (frame[..., ::-1])
        if not frame.flags.writeable:
            frame = frame.copy()  # torch.from_numpy warns about read-only arrays
        frame = torch.from_numpy(frame)
    check_frame_shape(frame.shape)
    if frame.dtype == torch.float32:
        low, high = (float(x) for x in frame.aminmax())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("frame: a float frame holds NaN or infinity; wanted numbers in 0..1")
        if low < 0 or high > 1:
            raise InputError(
                f"frame: a float frame wants values in 0..1, given {low:g}..{high:g}; "
                "divide by 255, or pass uint8"
            )
    return frame


def check_mask(mask: Array, size: Size) -> torch.Tensor:
    """Check a mask prompt and return it as a uint8 tensor [H, W] of object ids, 0 unlabelled.

    mask  [H, W] object ids, of an integer dtype or bool; or [O, H, W], one plane for each of the
          objects 1..O: float32 scores in 0..1 (argmax where it exceeds 0.5), or binary uint8 or
          bool
    size  (H, W) of the frame

    Raises  InputError for another type, dtype or size, an id outside 0..255, a soft mask with a
            NaN or a value outside 0..1, and binary planes that overlap.
    """
    if not isinstance(mask, Array):
        raise InputError(
            f"mask: wanted a numpy array or a torch tensor, given {type(mask).__name__}"
        )
    dtype = str(mask.dtype).removeprefix("torch.")
    if isinstance(mask, np.ndarray):
        dtype = mask.dtype.name  # in any byte order
    check = check_planes if mask.ndim == 3 else check_labels
    check(tuple(mask.shape), size, dtype)
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(mask.astype(dtype if mask.ndim == 3 else np.int64))
    if mask.ndim == 3:
        return _labels_of_planes(mask, dtype)
    check_ids(*(int(x) for x in mask.long().aminmax()))
    return mask.to(torch.uint8, copy=True)  # the caller may modify its own


def _labels_of_planes(planes: torch.Tensor, dtype: str) -> torch.Tensor:
    planes = planes.byte() if dtype == "bool" else planes
    low, high = (float(x) for x in planes.aminmax())
    check_values(dtype, low, high)
    if dtype in HARD:
        check_apart(int((planes.sum(dim=0) > 1).sum()))
    greatest, row = planes.max(dim=0)
    return torch.where(greatest > THRESHOLD, row + 1, 0).to(torch.uint8)


def prepare(
    frame: torch.Tensor,
    geometry: Geometry,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Network input for a frame [H, W, 3]: resized, padded and normalised, [3, H, W] of `dtype`."""
    return prepare_frame(
        frame, size=geometry.resized, padding=geometry.padding, mean=mean, std=std, dtype=dtype
    )


def restore(
    prepared: torch.Tensor,
    geometry: Geometry,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> torch.Tensor:
    """The inverse of `prepare`: uint8 [H, W, 3] at frame size; exact if nothing was resized."""
    image = prepared.float()
    image = image * image.new_tensor(std)[:, None, None] + image.new_tensor(mean)[:, None, None]
    image = crop(image, geometry)
    if geometry.resized != geometry.frame:
        image = functional.interpolate(
            image[None], geometry.frame, mode="bilinear", align_corners=False, antialias=True
        )[0]
    return (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def crop(planes: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Remove the padding: [..., H, W] at the network's size -> the frame's region, a view."""
    left, _, top, _ = geometry.padding
    height, width = geometry.resized
    return planes[..., top : top + height, left : left + width]


def pad(planes: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Zero-pad [..., height, width] from the resized to the network's size."""
    return functional.pad(planes, geometry.padding)


def resize_labels(labels: torch.Tensor, size: Size) -> torch.Tensor:
    """Resize uint8 labels [H, W] by nearest neighbour (pixel centres, "nearest-exact")."""
    if tuple(labels.shape) == size:
        return labels
    return functional.interpolate(labels[None, None], size, mode="nearest-exact")[0, 0]
