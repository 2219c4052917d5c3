"""`group_centres` in C++: one scan for the peaks, a bounded list of the best, one pass of labels.

Supports float32 on the CPU. Maps are copied only if neighbouring pixels of a row are not
contiguous. For a vector of pixels without foreground only the mask is read.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import cpu_unsupported, load
from .reference import Groups


def unsupported(
    heatmap: torch.Tensor, offset: torch.Tensor, foreground: torch.Tensor, **_: Any
) -> str | None:
    if heatmap.dtype != torch.float32:
        return f"wants float32, given {heatmap.dtype}"
    return cpu_unsupported(heatmap, offset, foreground)


def run(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> Groups:
    heatmap, offset, foreground = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (heatmap, offset, foreground)
    )
    labels = torch.empty(heatmap.shape, dtype=torch.uint8)
    centres = torch.empty(len(heatmap), limit, 2, dtype=torch.int32)
    scores = torch.empty(len(heatmap), limit, dtype=torch.float32)
    load().group_centres_cpu(
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
        torch.get_num_threads(),
    )
    return labels, centres, scores
