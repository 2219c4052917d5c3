"""`pool_regions` in CUDA: one launch for all levels and planes.

A block handles 32 channels of one map (8 if there are few regions) for one region, and computes the
cells and weights of its rows and columns of bins once. Channels-last maps are read 16 bytes at a
time if their channels are a multiple of that, all others cell by cell. Not yet timed on a GPU.

Supports float32, float16 and bfloat16 maps with any strides, boxes of any dtype; at most 16 maps,
and as many bins as fit into 24 KiB of shared memory: a size of 341 with 2 samples. Scratch: the
boxes in float64.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, stream_of

MOST_MAPS = 16
MOST_TAP_BYTES = 24 << 10


def unsupported(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    frame: torch.Tensor | None = None,
    planes: torch.Tensor | None = None,
    size: int = 14,
    sampling: int = 2,
    **_: Any,
) -> str | None:
    if levels[0].dtype not in ELEMENTS:
        return f"wants float32, float16 or bfloat16, given {levels[0].dtype}"
    count = len(levels) + (planes is not None)
    if count > MOST_MAPS:
        return f"wants at most {MOST_MAPS} maps, given {count}"
    needed = 8 * size * (1 + 4 * sampling)
    if needed > MOST_TAP_BYTES:
        return (
            f"wants at most {MOST_TAP_BYTES >> 10} KiB of cells and weights, given size {size} "
            f"with {sampling} samples, which needs {-(-needed >> 10)}"
        )
    return cuda_unsupported(*levels, boxes, frame, planes)


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
    maps, pixels = list(levels), list(strides)
    if planes is not None:
        maps.append(planes[:, None])
        pixels.append(plane_stride)
    boxes = boxes.to(torch.float64).contiguous()
    frame = None if frame is None else frame.contiguous()
    dtype, device = levels[0].dtype, levels[0].device
    channels = sum(source.shape[1] for source in maps)
    out = torch.empty(len(boxes), channels, size, size, dtype=dtype, device=device)
    load().pool_regions_cuda(
        [
            (source.data_ptr(), source.stride(), tuple(source.shape), cell, index == len(levels))
            for index, (source, cell) in enumerate(zip(maps, pixels, strict=True))
        ],
        boxes.data_ptr(),
        0 if frame is None else frame.data_ptr(),
        out.data_ptr(),
        (len(boxes), size, sampling),
        aligned,
        ELEMENTS[dtype],
        stream_of(out),
    )
    return out
