"""`finish_masks` in C++: one exponential per object and pixel, no full-size logits.

Each coarse row is interpolated to the output width once and used for all output rows that read it.
The aggregation uses odds, e^logit, so that labels need neither the sigmoid nor the sum.
Supports float32 logits on the CPU with any strides, computed in float32; float16 and bfloat16 are
converted on the coarse grid.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import cpu_unsupported, load


def unsupported(
    logits: torch.Tensor, ids: torch.Tensor, *, first: torch.Tensor | None = None, **_: Any
) -> str | None:
    if logits.dtype == torch.float64:
        return f"wants float32, bfloat16 or float16 logits, given {logits.dtype}"
    return cpu_unsupported(logits, ids, first)


def run(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    size: tuple[int, int],
    region: tuple[float, float, float, float],
    probabilities: bool = False,
    first: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits, ids = logits.float(), ids.contiguous()
    streams = 1 if first is None else len(first) - 1
    labels = torch.empty(size if first is None else (streams, *size), dtype=torch.uint8)
    planes = (streams + len(ids), *size)
    first = None if first is None else first.contiguous()
    stacked = torch.empty(planes, dtype=torch.float32) if probabilities else None
    load().finish_masks_cpu(
        logits.data_ptr(),
        logits.stride(),
        tuple(logits.shape),
        ids.data_ptr(),
        0 if first is None else first.data_ptr(),
        streams,
        size,
        region,
        labels.data_ptr(),
        0 if stacked is None else stacked.data_ptr(),
        torch.get_num_threads(),
    )
    return labels, stacked
