"""Convolution with fused norm, addition and activation (oneDNN on a CPU)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@cache
def fused_in() -> tuple[torch.dtype, ...]:
    """Dtypes that oneDNN fuses on this CPU; bfloat16 only with native support, not emulated."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    has_bf16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)


class Packed:
    """Convolution weights in oneDNN's blocked layout, with fused addition and ReLU or ReLU6.

    Weights are packed at the first call, for its input size and dtype.
    """

    def __init__(self) -> None:
        self._weight: torch.Tensor | None = None
        self._dtype: torch.dtype | None = None

    def __call__(
        self,
        x: torch.Tensor,
        conv: nn.Conv2d,
        add: torch.Tensor | None,
        relu: bool,
        relu6: bool,
    ) -> torch.Tensor:
        assert not isinstance(conv.padding, str)
        geometry: Any = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        if self._weight is None or self._dtype != x.dtype:
            weight = conv.weight.to_mkldnn()
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self._weight, self._dtype = pack(weight, *geometry, list(x.shape)), x.dtype
        run: Any = torch.ops.mkldnn._convolution_pointwise
        if add is None:
            attribute, limits = ("hardtanh", [0, 6]) if relu6 else ("relu" if relu else "none", [])
            fused: torch.Tensor = run(x, self._weight, conv.bias, *geometry, attribute, limits, "")
        else:
            then = "relu" if relu else None
            fused = run(x, add, self._weight, conv.bias, *geometry, "add", 1.0, then, [], None)
        return fused


def pack_convolutions(network: nn.Module) -> None:
    """Enable oneDNN fusion in `convolve` for this network's convolutions (inference on a CPU)."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            module.packed = Packed()  # type: ignore[assignment]


def convolve(
    x: torch.Tensor,
    conv: nn.Conv2d,
    norm: nn.Module | None = None,
    *,
    add: torch.Tensor | None = None,
    relu: bool = False,
    relu6: bool = False,
) -> torch.Tensor:
    """relu(norm(conv x) + add); parts that are not passed are left out.

    add    same shape as the result
    relu6  ReLU6 instead of ReLU; not together with `add`
    """
    packed: Packed | None = getattr(conv, "packed", None)
    plain = norm is None or isinstance(norm, nn.Identity)
    if packed is not None and plain and x.dtype in fused_in() and not torch.is_grad_enabled():
        return packed(x, conv, add, relu, relu6)
    x = conv(x)
    if norm is not None:
        x = norm(x)
    if add is not None:
        x = x + add
    if relu6:
        return functional.relu6(x)
    return functional.relu(x) if relu else x
