"""`prepare_frame` in CUDA: one pass, no intermediate image is stored.

A block computes a tile of the result. It reads the pixels of the frame that the tile needs into
shared memory, 16 bytes at a time if they are packed; resamples rows, then columns (neither, if
nothing is resized); normalises; rounds once to float32, float16 or bfloat16; and writes 16 bytes at
a time (8 if it resizes to half precision) if the result's rows are a multiple of 16 bytes, as they
are at a network's sizes, else one element at a time. If a tile's pixels do not fit in shared
memory, when shrinking more than about 7 times, a warp computes each pixel directly from the frame.

Supports frames on the GPU with any strides; one that is neither uint8 nor float32 is copied to
float32 first. Computes in float32, with positions in float64, so a float64 result is unsupported.
Bound by memory: 9 bytes per pixel from uint8 to half precision. Not yet timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, stream_of


def unsupported(frame: torch.Tensor, *, dtype: torch.dtype = torch.float32, **_: Any) -> str | None:
    if dtype not in ELEMENTS:
        return f"wants a float32, float16 or bfloat16 result, given {dtype}"
    return cuda_unsupported(frame)


def run(
    frame: torch.Tensor,
    *,
    size: tuple[int, int],
    padding: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    height, width, _ = frame.shape
    if frame.dtype != torch.uint8:
        frame = frame.float()
    left, right, top, bottom = padding
    padded = (top + size[0] + bottom, left + size[1] + right)
    shape = (*padded, 3) if channels_last else (3, *padded)
    out = torch.empty(shape, dtype=dtype, device=frame.device)
    load().prepare_frame_cuda(
        frame.data_ptr(),
        frame.dtype == torch.uint8,
        frame.stride(),
        (height, width),
        size,
        padding,
        mean,
        std,
        out.data_ptr(),
        channels_last,
        ELEMENTS[dtype],
        stream_of(frame),
    )
    return out.permute(2, 0, 1) if channels_last else out
