"""`pool_regions` in C++: separable, rows are blended into strips and strips into bins.

At DMN-AOA's sizes (480p, 3 to 30 regions on three levels; 2 threads, AVX2) 8 to 14 times as fast as
grid_sample and avg_pool2d map by map; `python bench/kernels.py pool_regions`.

Supports float32 on the CPU, boxes of any dtype; half precision is converted to float32. A map that
is not contiguous along x (channels last, a transposed mask) is copied first, since the kernel
blends rows by whole vectors.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import COMPUTED_IN_FLOAT32, cpu_unsupported, load


def unsupported(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    frame: torch.Tensor | None = None,
    planes: torch.Tensor | None = None,
    **_: Any,
) -> str | None:
    if levels[0].dtype not in COMPUTED_IN_FLOAT32:
        return f"wants float32, bfloat16 or float16, given {levels[0].dtype}"
    return cpu_unsupported(*levels, boxes, frame, planes)


def run(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    strides: tuple[int, ...],
    frame: torch.Tensor | None = None,
    planes: torch.Tensor | None = None,
    plane_stride: int = 1,
    size: int = 14,
    sampling: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    maps = [_with_rows(level.float()) for level in levels]
    pixels = list(strides)
    if planes is not None:
        maps.append(_with_rows(planes.float())[:, None])
        pixels.append(plane_stride)
    boxes = boxes.to(torch.float64).contiguous()
    frame = None if frame is None else frame.contiguous()
    channels = sum(source.shape[1] for source in maps)
    out = torch.empty(len(boxes), channels, size, size, dtype=torch.float32)
    load().pool_regions_cpu(
        [
            (source.data_ptr(), source.stride(), tuple(source.shape), cell, index == len(levels))
            for index, (source, cell) in enumerate(zip(maps, pixels, strict=True))
        ],
        boxes.data_ptr(),
        0 if frame is None else frame.data_ptr(),
        out.data_ptr(),
        (len(boxes), size, sampling),
        aligned,
        torch.get_num_threads(),
    )
    return out.to(levels[0].dtype)


def _with_rows(maps: torch.Tensor) -> torch.Tensor:
    """Return the maps contiguous along x, copied only if they are not."""
    return maps if maps.stride(-1) == 1 or maps.shape[-1] == 1 else maps.contiguous()
