"""`group_centres` in CUDA, two launches: the highest peaks of parts of an image, then labels.

The first kernel keeps the highest `limit` peaks of each of at most 512 parts, sorted. In the second
every block merges those lists, which takes a few microseconds in parallel, as long as a third
launch would; it holds the centres in shared memory and labels 4 pixels per thread. For pixels
without foreground only the mask is read. Not yet timed on a GPU.

Supports float32, float16 and bfloat16 with any strides, images of fewer than 2^31 pixels. Scratch:
8 bytes for each of 512 * limit peaks per image.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, stream_of
from .reference import Groups

PART = 1024  # pixels per step of a block
MOST_PARTS = 512


def unsupported(
    heatmap: torch.Tensor, offset: torch.Tensor, foreground: torch.Tensor, **_: Any
) -> str | None:
    if heatmap.dtype not in ELEMENTS:
        return f"wants float32, float16 or bfloat16, given {heatmap.dtype}"
    batch, height, width = heatmap.shape
    if height * width >= 1 << 31 or batch * MOST_PARTS >= 1 << 31:
        return f"wants less than 2^31 pixels and 2^22 images, given {list(heatmap.shape)}"
    return cuda_unsupported(heatmap, offset, foreground)


def run(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> Groups:
    batch, height, width = heatmap.shape
    device = heatmap.device
    lists = min(MOST_PARTS, -(-height * width // PART))
    peaks = torch.empty(batch, lists, limit, dtype=torch.int64, device=device)
    labels = torch.empty(heatmap.shape, dtype=torch.uint8, device=device)
    centres = torch.empty(batch, limit, 2, dtype=torch.int32, device=device)
    scores = torch.empty(batch, limit, dtype=heatmap.dtype, device=device)
    load().group_centres_cuda(
        heatmap.data_ptr(),
        heatmap.stride(),
        offset.data_ptr(),
        offset.stride(),
        foreground.data_ptr(),
        foreground.stride(),
        tuple(heatmap.shape),
        threshold,
        window,
        limit,
        labels.data_ptr(),
        centres.data_ptr(),
        scores.data_ptr(),
        peaks.data_ptr(),
        lists,
        ELEMENTS[heatmap.dtype],
        stream_of(heatmap),
    )
    return labels, centres, scores
