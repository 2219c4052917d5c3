"""`deform_conv` in C++: blocks of a few dozen pixels are sampled, then multiplied.

Supports float32 on the CPU; half precision is converted to float32. The image is packed once with
the channels of an offset group contiguous and a border of zeros. Sampled columns are stored only
for the block that a thread works on. The product is register-blocked.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import COMPUTED_IN_FLOAT32, cpu_unsupported, load
from .packing import side_unsupported
from .reference import Pair, as_pair


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
    if x.dtype not in COMPUTED_IN_FLOAT32:
        return f"wants float32, bfloat16 or float16, given {x.dtype}"
    return side_unsupported(x, padding) or cpu_unsupported(x, offset, weight, bias, mask)


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
    dtype, x = x.dtype, x.float()
    taps = weight.shape[2] * weight.shape[3]
    out = torch.empty(x.shape[0], weight.shape[0], *offset.shape[2:], dtype=torch.float32)
    # Named, so that they outlive the call: the extension is given addresses only.
    offset, weight = offset.float().contiguous(), weight.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    mask = None if mask is None else mask.float().contiguous()
    load().deform_conv_cpu(
        x.data_ptr(),
        x.stride(),
        tuple(x.shape),
        offset.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        tuple(out.shape[1:]),
        (
            *(tuple(weight.shape[2:]), as_pair(stride), as_pair(padding), as_pair(dilation)),
            *(groups, offset.shape[1] // (2 * taps)),
        ),
        torch.get_num_threads(),
    )
    return out.to(dtype)
