"""`prepare_frame` in C++: each output row in one pass, no intermediate image is stored.

Rows are resampled first (interleaved colours, wide vectors), then the pixels of the resulting row;
the division by 255 and the normalisation are one multiply-add. Supports frames on the CPU; computes
in float32, so a float64 result is unsupported. float16, bfloat16 and channels-last results are
converted from the float32 result. A frame whose pixels are not packed (a permuted view), or that is
neither uint8 nor float32, is copied first; row strides need no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..extension import cpu_unsupported, load


def unsupported(frame: torch.Tensor, *, dtype: torch.dtype = torch.float32, **_: Any) -> str | None:
    if dtype == torch.float64:
        return f"wants a float32, bfloat16 or float16 result, given {dtype}"
    return cpu_unsupported(frame)


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
    if frame.stride(1) != 3 or frame.stride(2) != 1:
        frame = frame.contiguous()
    left, right, top, bottom = padding
    padded = (3, top + size[0] + bottom, left + size[1] + right)
    out = torch.empty(padded, dtype=torch.float32)
    load().prepare_frame_cpu(
        frame.data_ptr(),
        frame.dtype == torch.uint8,
        frame.stride(),
        (height, width),
        size,
        padding,
        mean,
        std,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    out = out.to(dtype)
    return out[None].contiguous(memory_format=torch.channels_last)[0] if channels_last else out
