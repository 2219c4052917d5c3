"""`finish_masks` in CUDA: one pass from the coarse logits, nothing is stored per object.

A block labels a tile of the result. The cells under it lie in shared memory as float32, as many
objects at a time as fit; a thread makes four neighbouring pixels, and keeps the greatest logit and
its row. Labels alone need no exponential where the greatest logit is above 0 (an object wins) or
below -ln O (the background does): only blocks with a pixel between look at all objects again, for
the background's odds. Probabilities take a second look to be divided by their sum: four bytes of
labels and 16 of probabilities are written at a time.

Takes logits on the GPU with any strides, float32, float16 or bfloat16, and computes in float32 with
positions in float64; objects to float64. Where the result has fewer than three pixels to a cell
along a row, cells are read from the tensor instead of shared memory. Memory: none beside the
outputs. With probabilities it is bound by writing them; labels alone are bound by interpolating and
comparing, about 10 instructions for each object and pixel. Not yet timed on a GPU.
"""

from __future__ import annotations

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, stream_of


def unsupported(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    size: tuple[int, int],
    region: tuple[float, float, float, float],
    probabilities: bool = False,
    first: torch.Tensor | None = None,
) -> str | None:
    if logits.dtype not in ELEMENTS:
        return f"takes float32, float16 or bfloat16, and the logits are {logits.dtype}"
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
        ELEMENTS[logits.dtype],
        logits.stride(),
        tuple(logits.shape),
        ids.data_ptr(),
        0 if first is None else first.data_ptr(),
        streams,
        size,
        region,
        labels.data_ptr(),
        0 if stacked is None else stacked.data_ptr(),
        stream_of(logits),
    )
    return labels, stacked
