"""What onnxruntime runs faster in another form: convolutions of odd widths, averages of blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from onnxscript import opset20
from torch import nn
from torch.nn import functional

ALIGNED = 4  # onnxruntime's blocked layout (NCHWc) takes multiples of it


def align_channels(network: nn.Module) -> None:
    """Pad the inputs of convolutions with zero channels to a multiple of ALIGNED, in place.

    Of others onnxruntime runs those of many channels in another layout, in a fifth more time.
    """
    for conv in network.modules():
        if type(conv) is nn.Conv2d and conv.groups == 1 and conv.in_channels > ALIGNED:
            missing = -conv.in_channels % ALIGNED
            if missing:
                weight = functional.pad(conv.weight, (0, 0, 0, 0, 0, missing))
                conv.weight, conv.in_channels = nn.Parameter(weight), weight.shape[1]
                conv.register_forward_pre_hook(partial(_append_zeros, missing))


def _append_zeros(
    channels: int, conv: nn.Module, inputs: tuple[torch.Tensor]
) -> tuple[torch.Tensor]:
    (x,) = inputs
    zeros = x.new_zeros(x.shape[0], channels, *x.shape[2:])
    return (torch.cat((x, zeros), dim=1),)


def _avg_pool_node(
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Average pooling. Of blocks that do not overlap by two means: with few channels they take a
    fifth of the time of AveragePool."""
    assert divisor_override is None
    height, width = kernel_size
    if [*(stride or kernel_size)] != [height, width] or any(padding) or ceil_mode:
        return opset20.AveragePool(
            x,
            kernel_shape=[height, width],
            strides=[*(stride or kernel_size)],
            pads=[*padding] * 2,
            ceil_mode=int(ceil_mode),
            count_include_pad=int(count_include_pad),
        )
    x = opset20.Reshape(x, opset20.Constant(value_ints=[0, 0, 0, -1, width]))
    x = opset20.ReduceMean(x, opset20.Constant(value_ints=[4]), keepdims=0)  # [B, C, H, w]
    start = opset20.Constant(value_ints=[0, 0, -1, height])
    shape = opset20.Concat(start, opset20.Shape(x, start=3), axis=0)
    axis = opset20.Constant(value_ints=[3])
    return opset20.ReduceMean(opset20.Reshape(x, shape), axis, keepdims=0)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.avg_pool2d.default: _avg_pool_node,
}
