"""The graphs `prepare` and `finish`: preprocessing of frames and postprocessing of logits.

Written in onnxscript, not traced: they are the same for every model and take sizes as tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnxscript import BOOL, DOUBLE, FLOAT, INT64, UINT8, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

from ...kernels.finish_masks.reference import LOWEST_ODDS
from ..library import DOMAIN, VERSION

NOT_THERE = -1e30  # a logit with odds 0
ours: Any = Opset(DOMAIN, VERSION)


def prepare_graph(
    mean: Sequence[float], std: Sequence[float], half: bool, opset: int, ops: str = "standard"
) -> onnx.ModelProto:
    """The op `prepare_frame` as a graph: frame uint8 [height, width, 3], resized int64 [2], padding
    int64 [4] (left, right, top, bottom) -> prepared [1, 3, H, W]."""
    mean, std = [float(value) for value in mean], [float(value) for value in std]
    centre = [value * 255 for value in mean]
    spread = [value * 255 for value in std]
    wide = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT

    @script(default_opset=op)
    def prepare(
        frame: UINT8["height", "width", 3], resized: INT64[2], padding: INT64[4]
    ) -> FLOAT[1, 3, "H", "W"]:
        image = op.Unsqueeze(op.Transpose(op.Cast(frame, to=1), perm=[2, 0, 1]), [0])
        sizes = op.Concat(op.Constant(value_ints=[1, 3]), resized, axis=0)
        image = op.Resize(image, None, None, sizes, mode="linear", antialias=1, exclude_outside=1)
        sides = op.Gather(padding, op.Constant(value_ints=[2, 0, 3, 1]), axis=0)
        axes = op.Constant(value_ints=[2, 3])
        image = op.Pad(image, sides, op.Constant(value_float=0.0), axes)
        mean = op.Reshape(op.Constant(value_floats=centre), op.Constant(value_ints=[1, 3, 1, 1]))
        std = op.Reshape(op.Constant(value_floats=spread), op.Constant(value_ints=[1, 3, 1, 1]))
        prepared = op.Cast(op.Div(op.Sub(image, mean), std), to=wide)
        return prepared

    @script(default_opset=op)
    def prepare_by_op(
        frame: UINT8["height", "width", 3], resized: INT64[2], padding: INT64[4]
    ) -> FLOAT[1, 3, "H", "W"]:
        image = ours.prepare_frame(frame, resized, padding, mean=mean, std=std)
        prepared = op.Cast(op.Unsqueeze(image, op.Constant(value_ints=[0])), to=wide)
        return prepared

    chosen = prepare_by_op if ops == "vosengine" else prepare
    return _finished(chosen.to_model_proto(), opset, half)


@script(default_opset=op)
def finish(
    logits: FLOAT["objects", "h", "w"],
    alive: BOOL["objects"],
    prompt: UINT8["height", "width"],
    size: INT64[2],
    region: DOUBLE[4],
    padding: INT64[4],
) -> tuple[UINT8["y", "x"], FLOAT["rows", "H", "W"]]:
    one = op.Constant(value_int=1)
    zero = op.Constant(value_int=0)
    half = op.Cast(0.5, to=11)
    top, left, tall, wide = op.Split(region, num_outputs=4)
    height, width = op.Split(size, num_outputs=2)
    rows = op.Add(op.Cast(op.Range(zero, op.Squeeze(height), one), to=11), half)
    columns = op.Add(op.Cast(op.Range(zero, op.Squeeze(width), one), to=11), half)

    # Rows that take part: alive, and not in the prompt.
    count = op.Squeeze(op.Shape(alive))
    ids = op.Reshape(op.Range(one, op.Add(count, one), one), op.Constant(value_ints=[-1, 1, 1]))
    shown = op.Equal(op.Unsqueeze(prompt, [0]), op.Cast(ids, to=2))
    named = op.ReduceMax(op.Cast(shown, to=2), op.Constant(value_ints=[1, 2]), keepdims=1)
    alive_rows = op.Reshape(alive, op.Constant(value_ints=[-1, 1, 1]))
    counted = op.And(alive_rows, op.Equal(named, op.Cast(zero, to=2)))
    coarse = op.Where(counted, logits, op.Constant(value_float=NOT_THERE))

    # Position of every pixel on the grid, and its bilinear weights.
    grid = op.Shape(logits)
    cells_y = op.Range(zero, op.Squeeze(op.Gather(grid, [1])), one)
    cells_x = op.Range(zero, op.Squeeze(op.Gather(grid, [2])), one)
    last_y = op.Cast(op.Sub(op.Gather(grid, [1]), one), to=11)
    last_x = op.Cast(op.Sub(op.Gather(grid, [2]), one), to=11)
    y = op.Sub(op.Add(op.Div(op.Mul(rows, tall), op.Cast(height, to=11)), top), half)
    x = op.Sub(op.Add(op.Div(op.Mul(columns, wide), op.Cast(width, to=11)), left), half)
    y = op.Max(op.Min(y, last_y), op.Cast(zero, to=11))
    x = op.Max(op.Min(x, last_x), op.Cast(zero, to=11))
    from_y = op.Abs(op.Sub(op.Unsqueeze(y, [1]), op.Cast(cells_y, to=11)))
    from_x = op.Abs(op.Sub(x, op.Unsqueeze(op.Cast(cells_x, to=11), [1])))
    near_y = op.Relu(op.Cast(op.Sub(op.Cast(one, to=11), from_y), to=1))  # [H, h]
    near_x = op.Relu(op.Cast(op.Sub(op.Cast(one, to=11), from_x), to=1))  # [w, W]
    odds = op.Exp(op.MatMul(near_y, op.MatMul(coarse, near_x)))

    # Soft aggregation: the background's odds are 1 / (product of (1 + odds) - 1).
    least = op.Constant(value_float=LOWEST_ODDS)
    most = op.Constant(value_float=1 / LOWEST_ODDS)
    joint = op.ReduceProd(op.Add(odds, 1.0), op.Constant(value_ints=[0]), keepdims=1)
    background = op.Clip(op.Div(1.0, op.Sub(joint, 1.0)), least, most)
    odds = op.Mul(op.Clip(odds, least, most), op.Cast(counted, to=1))
    odds = op.Concat(background, odds, axis=0)
    probabilities = op.Div(odds, op.ReduceSum(odds, op.Constant(value_ints=[0]), keepdims=1))

    # Prompted pixels: probability 1 for the prompted object, 0 for the others.
    scale_y = op.Div(op.Cast(op.Shape(prompt, start=0, end=1), to=11), op.Cast(height, to=11))
    scale_x = op.Div(op.Cast(op.Shape(prompt, start=1, end=2), to=11), op.Cast(width, to=11))
    take_y = op.Cast(op.Floor(op.Mul(rows, scale_y)), to=7)
    take_x = op.Cast(op.Floor(op.Mul(columns, scale_x)), to=7)
    resized_prompt = op.Gather(op.Gather(prompt, take_y, axis=0), take_x, axis=1)
    resized_prompt = op.Unsqueeze(resized_prompt, [0])
    table = op.Reshape(op.Range(zero, op.Add(count, one), one), op.Constant(value_ints=[-1, 1, 1]))
    is_it = op.Cast(op.Equal(resized_prompt, op.Cast(table, to=2)), to=1)
    probabilities = op.Where(op.Greater(resized_prompt, op.Cast(zero, to=2)), is_it, probabilities)

    labels = op.Cast(op.ArgMax(probabilities, axis=0, keepdims=0), to=2)
    sides = op.Gather(padding, op.Constant(value_ints=[2, 0, 3, 1]), axis=0)
    axes = op.Constant(value_ints=[1, 2])
    masks = op.Pad(probabilities, sides, op.Constant(value_float=0.0), axes)
    return labels, masks


@script(default_opset=op)
def finish_by_op(
    logits: FLOAT["objects", "h", "w"],
    alive: BOOL["objects"],
    prompt: UINT8["height", "width"],
    size: INT64[2],
    region: DOUBLE[4],
    padding: INT64[4],
) -> tuple[UINT8["y", "x"], FLOAT["rows", "H", "W"]]:
    one = op.Constant(value_int=1)
    zero = op.Constant(value_int=0)
    first = op.Constant(value_ints=[0])
    column = op.Constant(value_ints=[-1, 1, 1])
    nothing = op.Constant(value_float=0.0)
    none = op.Cast(zero, to=2)
    count = op.Size(alive)
    end = op.Add(count, one)

    # Only rows that are alive and not prompted go through the op.
    ids = op.Cast(op.Range(one, end, one), to=2)
    said = op.Greater(op.ReduceMax(prompt, keepdims=0), none)
    if said:
        shown = op.Cast(op.Equal(op.Unsqueeze(prompt, first), op.Reshape(ids, column)), to=2)
        named = op.ReduceMax(shown, op.Constant(value_ints=[1, 2]), keepdims=0)
        counted = op.And(alive, op.Equal(named, none))
    else:
        counted = op.Identity(alive)
    some_ids = op.Compress(ids, counted, axis=0)
    seen, planes = ours.finish_masks(op.Compress(logits, counted, axis=0), some_ids, size, region)

    # Every row gets its plane back.
    left = op.Size(some_ids)
    if op.Equal(left, count):
        every = op.Identity(planes)
    else:
        order = op.CumSum(op.Cast(counted, to=7), zero)
        places = op.Concat(first, op.Where(counted, order, op.Add(left, one)), axis=0)
        wider = op.Pad(planes, op.Constant(value_ints=[0, 0, 0, 1, 0, 0]), nothing)
        every = op.Gather(wider, places, axis=0)

    # The prompt, by its pixel that is nearest, overrides the result.
    if said:
        height, width = op.Split(size, num_outputs=2)
        half = op.Cast(op.Constant(value_float=0.5), to=11)
        rows = op.Add(op.Cast(op.Range(zero, op.Squeeze(height), one), to=11), half)
        columns = op.Add(op.Cast(op.Range(zero, op.Squeeze(width), one), to=11), half)
        scale_y = op.Div(op.Cast(op.Shape(prompt, start=0, end=1), to=11), op.Cast(height, to=11))
        scale_x = op.Div(op.Cast(op.Shape(prompt, start=1, end=2), to=11), op.Cast(width, to=11))
        take_y = op.Cast(op.Floor(op.Mul(rows, scale_y)), to=7)
        take_x = op.Cast(op.Floor(op.Mul(columns, scale_x)), to=7)
        given_ids = op.Gather(op.Gather(prompt, take_y, axis=0), take_x, axis=1)
        is_said = op.Greater(given_ids, none)
        told = op.Where(is_said, given_ids, seen)
        table = op.Reshape(op.Cast(op.Range(zero, end, one), to=2), column)
        sure = op.Cast(op.Equal(op.Unsqueeze(given_ids, first), table), to=1)
        probabilities = op.Where(op.Unsqueeze(is_said, first), sure, every)
    else:
        told = op.Identity(seen)
        probabilities = op.Identity(every)
    sides = op.Gather(padding, op.Constant(value_ints=[2, 0, 3, 1]), axis=0)
    labels = op.Identity(told)
    masks = op.Pad(probabilities, sides, nothing, op.Constant(value_ints=[1, 2]))
    return labels, masks


def finish_graph(opset: int, ops: str = "standard") -> onnx.ModelProto:
    """The op `finish_masks` as a graph, overridden by a prompt: logits [objects, h, w] float32,
    alive bool [objects], prompt uint8 [height, width] (1 + row, 0 without a prompt), size int64
    [2], region float64 [4], padding int64 [4] -> labels uint8 [size] (1 + row, or 0), and the
    probabilities of background and rows, padded."""
    chosen = finish_by_op if ops == "vosengine" else finish
    return _finished(chosen.to_model_proto(), opset, False)


def _finished(model: onnx.ModelProto, opset: int, half: bool) -> onnx.ModelProto:
    model = onnx.version_converter.convert_version(model, opset)
    if half:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model
