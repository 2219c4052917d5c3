"""`prepare_frame` in CUDA: one pass, nothing is stored on the way.

A block makes a tile of the result. It reads the pixels of the frame that the tile needs into shared
memory, 16 bytes at a time where they are packed; averages rows, then columns (or neither, where
nothing is resized); normalises; rounds once to float32, float16 or bfloat16; and writes 16 bytes at
a time (8 where it resizes to a half) where the result's rows are a multiple of 16 bytes, as they
are at a network's sizes: one element at a time else. Where a tile's pixels do not fit in shared
memory, shrinking more than about 7 times, a warp makes each pixel straight from the frame.

Takes frames on the GPU with any strides; one that is neither uint8 nor float32 is copied to float32
first. Computes in float32, with positions in float64, so it objects to a float64 result. Bound by
memory: 9 bytes move for each pixel of uint8 that becomes half. Not yet timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, stream_of


def unsupported(
    frame: torch.Tensor,
    *,
    size: tuple[int, int],
    padding: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> str | None:
    if dtype not in ELEMENTS:
        return f"writes float32, float16 or bfloat16, and {dtype} is asked for"
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
        ELEMENTS[dtype],
        channels_last,
        stream_of(frame),
    )
    return out.permute(2, 0, 1) if channels_last else out
