"""`deform_conv` in CUDA: each lane samples its own fragment of the tensor-core operand.

The first kernel packs the image (see packing.py) into units of 16 bytes, and the weights. In the
second a warp computes 16 pixels x 64 outputs. A lane computes the positions and bilinear weights of
a pixel, offset group and tap once, in float32, and samples 8 channels with four 16-byte loads. The
samples, rounded to x's dtype, are multiplied on the tensor cores with float32 accumulators, without
passing through shared memory. In float32 they pass through shared memory and use FMAs.

Supports float16, bfloat16 and float32, any strides, sides below 32768. Scratch: the packed image
and the packed weights. Dispatch prefers it to Triton for every shape, by the order of backends
only: neither is timed on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, stream_of
from .packing import packing_of, side_unsupported
from .reference import Pair, as_pair

OUTPUTS = 64  # per tile, as in csrc/deform_conv.cu


def unsupported(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    padding: Pair = 0,
    **_: Any,
) -> str | None:
    if x.dtype not in ELEMENTS:
        return f"wants float32, float16 or bfloat16, given {x.dtype}"
    return side_unsupported(x, padding) or cuda_unsupported(x, offset, weight, bias, mask)


def run(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> torch.Tensor:
    like: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    out = torch.empty(x.shape[0], weight.shape[0], *offset.shape[2:], **like)
    if out.numel() == 0:
        return out
    packing = packing_of(x, offset, weight, groups, 16 // x.element_size())
    together = 32 // packing.unit  # units per product: 32 channels
    depth = -(-packing.units // together) * 32
    wide = -(-(weight.shape[0] // groups) // OUTPUTS) * OUTPUTS
    # Named, so that they outlive the launch: the extension is given addresses only.
    packed = torch.empty(packing.image_shape(x, groups), **like)
    weights = torch.empty(groups * packing.taps * depth * wide, **like)
    bias = None if bias is None else bias.contiguous()
    strength = (0, (0, 0, 0, 0)) if mask is None else (mask.data_ptr(), mask.stride())
    load().deform_conv_cuda(
        (x.data_ptr(), x.stride()),
        tuple(x.shape),
        (offset.data_ptr(), offset.stride()),
        strength,
        (weight.data_ptr(), weight.stride()),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        tuple(out.shape[1:]),
        (
            *(tuple(weight.shape[2:]), as_pair(stride), as_pair(padding), as_pair(dilation)),
            *(groups, x.shape[1] // packing.side),
        ),
        packed.data_ptr(),
        weights.data_ptr(),
        (packing.section, packing.chunks, packing.units),
        ELEMENTS[x.dtype],
        stream_of(x),
    )
    return out
