"""`prepare_frame` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..shapes import ShapeError, check


def contract(
    frame: torch.Tensor,
    *,
    size: tuple[int, int],
    padding: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> None:
    sizes = check({"frame": (frame, "H W 3")})
    if frame.dtype != torch.uint8 and not frame.dtype.is_floating_point:
        raise ShapeError(f"frame: wanted uint8 or a floating dtype, given {frame.dtype}")
    if min(sizes["H"], sizes["W"]) < 1:
        raise ValueError(f"frame: wanted at least one pixel, given {list(frame.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: wanted (height, width) of at least 1, given {size}")
    if len(padding) != 4 or min(padding) < 0:
        raise ValueError(f"padding: wanted (left, right, top, bottom), 0 or more, given {padding}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean, std: wanted three numbers each, std > 0, given {mean}, {std}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: wanted a floating dtype, given {dtype}")


def prepare_frame(
    frame: torch.Tensor,
    *,
    size: tuple[int, int],
    padding: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    """Resize an RGB image, pad it with black, normalise it and move channels first.

        out[c] = (pad(resize(frame / 255))[c] - mean[c]) / std[c]

    frame    [H, W, 3]   uint8 0..255, or floating 0..1 (then not divided); RGB, any strides
    size     (height, width) after resizing: bilinear, half-pixel centres, antialiased when
             shrinking by a triangle filter scaled to the step; (H, W) leaves pixels unchanged
    padding  (left, right, top, bottom) pixels of black around the resized image
    mean     three numbers, of RGB in 0..1
    std      three numbers > 0, of RGB in 0..1
    channels_last  whether the result is stored as [height, width, 3], the layout of
             torch.channels_last; its shape is the same
    returns  [3, top + height + bottom, left + width + right]   new, contiguous unless
             channels_last, of `dtype`

    Dtype   computed in float32 (float64 for a float64 result), rounded once to `dtype`.
    Device  the frame's; no synchronisation with the host.
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for an option.
    Source  STM's released evaluation: black is padded before normalisation, not 0 after it.
    """
    image = frame.permute(2, 0, 1)
    wide = torch.promote_types(dtype, torch.float32)
    image = image.to(wide) / 255 if frame.dtype == torch.uint8 else image.to(wide)
    if tuple(size) != tuple(frame.shape[:2]):
        # torch 2.13 resizes one column to one column incorrectly; two equal columns are correct.
        columns = 2 if image.shape[2] == size[1] == 1 else size[1]
        image = functional.interpolate(
            image.expand(-1, -1, 2)[None] if columns > size[1] else image[None],
            (size[0], columns),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0, :, :, : size[1]]
    image = functional.pad(image, padding)
    centre = torch.tensor(mean, dtype=wide, device=frame.device)[:, None, None]
    spread = torch.tensor(std, dtype=wide, device=frame.device)[:, None, None]
    image = ((image - centre) / spread).to(dtype)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return image[None].contiguous(memory_format=form)[0]
