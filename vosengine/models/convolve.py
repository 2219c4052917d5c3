"""A convolution and what comes right after it, in one pass over the map where that can be."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@cache
def fused_in() -> tuple[torch.dtype, ...]:
    """The dtypes that oneDNN takes here: bfloat16 not where it would have to be emulated."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    has_bf16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)


class Packed:
    """A convolution's weights as oneDNN wants them, which adds another map and takes the ReLU or
    ReLU6 while the sums are still in registers; packed at the first use, for maps of that size."""

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
        where: Any = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        if self._weight is None or self._dtype != x.dtype:
            weight = conv.weight.to_mkldnn()
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self._weight, self._dtype = pack(weight, *where, list(x.shape)), x.dtype
        run: Any = torch.ops.mkldnn._convolution_pointwise
        if add is None:
            attribute, limits = ("hardtanh", [0, 6]) if relu6 else ("relu" if relu else "none", [])
            fused: torch.Tensor = run(x, self._weight, conv.bias, *where, attribute, limits, "")
        else:
            then = "relu" if relu else None
            fused = run(x, add, self._weight, conv.bias, *where, "add", 1.0, then, [], None)
        return fused


def pack_convolutions(network: nn.Module) -> None:
    """Let `convolve` fuse what follows a convolution of this network, in inference on a CPU."""
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
    """relu(norm(conv x) + add), without the parts that are not named; `add` as large as the
    outcome; relu6 in place of relu, and not together with `add`."""
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
