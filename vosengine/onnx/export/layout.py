"""What onnxruntime runs faster in another form: convolutions of odd widths, averages of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import opset20

ALIGNED = 4  # onnxruntime's blocked layout (NCHWc) takes multiples of it


def align_channels(model: onnx.ModelProto) -> None:
    """Pad the inputs of convolutions with zero channels to a multiple of ALIGNED, in place.

    Of others onnxruntime runs those of many channels in another layout, in a seventh more time.
    """
    graph, nodes = model.graph, list[onnx.NodeProto]()
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None and _unaligned(node, weight):
            missing = -weight.dims[1] % ALIGNED
            values = numpy_helper.to_array(weight)
            wider = np.pad(values, ((0, 0), (0, missing), (0, 0), (0, 0)))
            pads, x, w = (f"{node.output[0]}_{name}" for name in ("pads", "padded", "weight"))
            ends = np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64)
            graph.initializer.append(numpy_helper.from_array(ends, pads))
            graph.initializer.append(numpy_helper.from_array(wider, w))
            nodes.append(onnx.helper.make_node("Pad", [node.input[0], pads], [x]))
            node.input[0], node.input[1] = x, w
        nodes.append(node)
    used = {*_inputs(nodes), *(value.name for value in graph.output)}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _inputs(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names that nodes take, those of their subgraphs included."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from _inputs(attribute.g.node)


def _unaligned(node: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    channels = weight.dims[1]
    return len(weight.dims) == 4 and groups == 1 and channels > ALIGNED and channels % ALIGNED > 0


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
    sixth of the time of AveragePool."""
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
