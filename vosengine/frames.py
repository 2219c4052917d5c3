"""Frames and masks on their way in and out: checked, resized, padded, normalised, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from .config import SMALLEST_SIDE
from .errors import InputError
from .kernels import prepare_frame
from .types import Geometry, Size

Array = np.ndarray | torch.Tensor


def check_frame(frame: Array) -> torch.Tensor:
    """A caller's frame as a tensor [H, W, 3], uint8, or float32 in 0..1; never copied.

    Raises  InputError, naming what was wrong, for any other type, dtype, rank, channel count or
            size below 32 x 32, and for a float frame with a NaN or a value outside 0..1.
    """
    if isinstance(frame, np.ndarray):
        if frame.dtype not in (np.uint8, np.float32):
            raise InputError(f"frame: wanted dtype uint8 or float32, given {frame.dtype}")
        if min(frame.strides, default=0) < 0:
            frame = np.ascontiguousarray(frame)  # torch has no negative strides (frame[..., ::-1])
        if not frame.flags.writeable:
            frame = frame.copy()  # torch would warn that a read-only array may be written to
        frame = torch.from_numpy(frame)
    if not isinstance(frame, torch.Tensor):
        raise InputError(
            f"frame: wanted a numpy array or a torch tensor, given {type(frame).__name__}"
        )
    if frame.dtype not in (torch.uint8, torch.float32):
        raise InputError(f"frame: wanted dtype uint8 or float32, given {frame.dtype}")
    if frame.ndim != 3:
        raise InputError(f"frame: wanted rank 3, [H, W, 3], given shape {list(frame.shape)}")
    if frame.shape[2] != 3:
        hint = "; channels go last" if frame.shape[0] == 3 else ""
        raise InputError(
            f"frame: wanted 3 channels, [H, W, 3] RGB, given {list(frame.shape)}{hint}"
        )
    if min(frame.shape[:2]) < SMALLEST_SIDE:
        raise InputError(
            f"frame: wanted at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
            f"given {frame.shape[0]} x {frame.shape[1]}"
        )
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
    """A caller's prompt as a uint8 tensor [H, W] of object ids, 0 where it says nothing.

    Raises  InputError for another type, a dtype that is no integer or bool, another size than the
            frame's, and an id below 0 or above 255.
    """
    if isinstance(mask, np.ndarray):
        if mask.dtype.kind not in "uib":
            raise InputError(f"mask: wanted an integer dtype (object ids), given {mask.dtype}")
        mask = torch.from_numpy(mask.astype(np.int64))
    if not isinstance(mask, torch.Tensor):
        raise InputError(
            f"mask: wanted a numpy array or a torch tensor, given {type(mask).__name__}"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise InputError(f"mask: wanted an integer dtype (object ids), given {mask.dtype}")
    if tuple(mask.shape) != size:
        raise InputError(f"mask: wanted the frame's size {list(size)}, given {list(mask.shape)}")
    low, high = (int(x) for x in mask.long().aminmax())
    if low < 0 or high > 255:
        raise InputError(
            f"mask: wanted object ids in 1..255 (0 is background), given {low}..{high}"
        )
    return mask.to(torch.uint8, copy=True)  # the caller may write to theirs


def prepare(
    frame: torch.Tensor,
    geometry: Geometry,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
) -> torch.Tensor:
    """A frame as the network sees it: [3, H, W] at the network's size, of `dtype`."""
    return prepare_frame(
        frame, size=geometry.resized, padding=geometry.padding, mean=mean, std=std, dtype=dtype
    )


def restore(
    prepared: torch.Tensor,
    geometry: Geometry,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> torch.Tensor:
    """The inverse of `prepare`: uint8 [H, W, 3] at frame size; exact where nothing was resized."""
    image = prepared.float()
    image = image * image.new_tensor(std)[:, None, None] + image.new_tensor(mean)[:, None, None]
    image = crop(image, geometry)
    if geometry.resized != geometry.frame:
        image = functional.interpolate(
            image[None], geometry.frame, mode="bilinear", align_corners=False, antialias=True
        )[0]
    return (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def crop(planes: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The part of [..., H, W] at the network's size that shows the frame; a view."""
    left, _, top, _ = geometry.padding
    height, width = geometry.resized
    return planes[..., top : top + height, left : left + width]


def pad(planes: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """[..., height, width] at the resized size, with zeros around it up to the network's size."""
    return functional.pad(planes, geometry.padding)


def resize_labels(labels: torch.Tensor, size: Size) -> torch.Tensor:
    """uint8 labels [H, W] at another size, each pixel that of the nearest centre."""
    if tuple(labels.shape) == size:
        return labels
    return functional.interpolate(labels[None, None], size, mode="nearest-exact")[0, 0]
