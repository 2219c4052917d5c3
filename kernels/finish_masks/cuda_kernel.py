"""`finish_masks` in CUDA: one pass over the coarse logits, nothing is stored per object.

A block computes a tile of the result. The cells under it are staged in shared memory as float32, as
many objects at a time as fit. A thread computes four neighbouring pixels and keeps the maximum
logit and its row. Without probabilities no exponential is needed where the maximum logit is above 0
(an object wins) or below -ln O (the background wins); only blocks with a pixel in between read all
objects again, for the odds of the background. Probabilities need a second pass to divide by their
sum. Stores are 4 bytes of labels and 16 of probabilities.

Supports float32, float16 and bfloat16 logits with any strides; computes in float32 with positions
in float64. If the result has fewer than three pixels per cell along a row, cells are read from
global instead of shared memory. No scratch. With probabilities it is bound by writing them; without
by interpolation and comparison, about 10 instructions per object and pixel. Not yet timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, stream_of


def unsupported(
    logits: torch.Tensor, ids: torch.Tensor, *, first: torch.Tensor | None = None, **_: Any
) -> str | None:
    if logits.dtype not in ELEMENTS:
        return f"wants float32, float16 or bfloat16 logits, given {logits.dtype}"
    return cuda_unsupported(logits, ids, first)


def run(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    size: tuple[int, int],
    region: tuple[float, float, float, float],
    probabilities: bool = False,
    first: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    ids = ids.contiguous()
    streams = 1 if first is None else len(first) - 1
    shape = size if first is None else (streams, *size)
    labels = torch.empty(shape, dtype=torch.uint8, device=logits.device)
    planes = (streams + len(ids), *size)
    first = None if first is None else first.contiguous()
    stacked = (
        torch.empty(planes, dtype=torch.float32, device=logits.device) if probabilities else None
    )
    if streams == 0:
        return labels, None if stacked is None else stacked.zero_()
    load().finish_masks_cuda(
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
        ELEMENTS[logits.dtype],
        stream_of(logits),
    )
    return labels, stacked
