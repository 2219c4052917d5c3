"""Region pooling and proposal matching in ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript import opset18 as op  # what torch traces to, before it raises the opset
from torch.nn import functional

from ... import kernels as ops

FAR = 1e30  # a cost that is never the least of a row or column
EQUAL = 1e-5  # as in match_proposals


@torch.library.custom_op("vosengine_onnx::roi_align", mutates_args=())
def _roi_align(
    maps: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    size: int,
    stride: int,
    sampling: int,
    aligned: bool,
) -> torch.Tensor:
    frame = images.to(torch.int32)
    return ops.pool_regions.reference(
        (maps,),
        boxes,
        strides=(stride,),
        frame=frame,
        size=size,
        sampling=sampling,
        aligned=aligned,
    )


_roi_align.register_fake(
    lambda maps, boxes, images, size, *_: maps.new_empty(boxes.shape[0], maps.shape[1], size, size)
)


def _roi_align_node(
    maps: Any, boxes: Any, images: Any, size: int, stride: int, sampling: int, aligned: bool
) -> Any:
    return op.RoiAlign(
        maps,
        boxes,
        images,
        output_height=size,
        output_width=size,
        sampling_ratio=sampling,
        spatial_scale=1.0 / stride,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )


def pool_regions(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    strides: tuple[int, ...],
    frame: torch.Tensor | None = None,
    planes: torch.Tensor | None = None,
    plane_stride: int = 1,
    size: int = 14,
    sampling: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    """One RoiAlign per level. Maps and boxes are converted to float32; boxes must be finite."""
    regions = torch.arange(boxes.shape[0], device=boxes.device)
    images = torch.zeros_like(regions) if frame is None else frame.long()
    sources = [(*each, images) for each in zip(levels, strides, strict=True)]
    if planes is not None:
        sources.append((planes[:, None], plane_stride, regions))
    pooled = [
        _roi_align(maps.float(), boxes.float(), index, size, stride, sampling, aligned)
        for maps, stride, index in sources
    ]
    return torch.cat(pooled, dim=1).to(levels[0].dtype)


def align_object(
    template: torch.Tensor, proposal: torch.Tensor, *, alpha: float, score: str
) -> torch.Tensor:
    """Scores [O, M] of all pairs of templates [O, P, C] and proposals [M, P, C] at once."""
    template, values = template.float(), proposal.float()
    keys = functional.normalize(values, dim=2, eps=1e-12)
    query = alpha * functional.normalize(template, dim=2, eps=1e-12)
    moved = torch.softmax(query[:, None] @ keys.mT[None], dim=3) @ values[None]  # [O, M, P, C]
    pair = (template[:, None], moved)
    if score == "flat":
        pair = (template.flatten(1)[:, None], moved.flatten(2))
    unit, turned = (functional.normalize(x, dim=-1, eps=1e-12) for x in pair)
    cosine = (unit * turned).sum(dim=-1)
    return cosine.mean(dim=2) if score == "mean" else cosine


@torch.library.custom_op("vosengine_onnx::match_proposals", mutates_args=())
def match_proposals(
    similarity: torch.Tensor,
    alive: torch.Tensor,
    there: torch.Tensor,
    steps: int,
    inner: int,
    rate: float,
    most: bool,
) -> torch.Tensor:
    """`match_proposals` of the marked objects and proposals -> [O, M], 0 elsewhere.

    similarity  [O, M] float32
    alive       bool [O], marks the first rows, at least one
    there       bool [M], marks the first columns, at least one
    most        the answer is "dmm", else "final"
    """
    answer = "dmm" if most else "final"
    rows, columns = int(alive.sum()), int(there.sum())
    assignment = torch.zeros_like(similarity)
    assignment[:rows, :columns] = ops.match_proposals.reference(
        similarity[:rows, :columns].contiguous(), steps=steps, inner=inner, rate=rate, answer=answer
    )
    return assignment


match_proposals.register_fake(lambda similarity, *_: torch.empty_like(similarity))


@script(default_opset=op)
def _assign(
    similarity: FLOAT["O", "M"],
    alive: BOOL["O"],
    there: BOOL["M"],
    steps: INT64,
    inner: INT64,
    rate: FLOAT,
    most: BOOL,
) -> FLOAT["O", "M"]:
    one = op.Constant(value_int=1)
    along_rows = op.Constant(value_ints=[1])
    along_columns = op.Constant(value_ints=[0])
    zero = op.Constant(value_float=0.0)
    far = op.Constant(value_float=FAR)

    # Columns: the proposals, then padding so that every object can be left unassigned.
    proposals = op.Shape(similarity, start=1, end=2)
    row_count = op.ReduceSum(op.Cast(alive, to=7))
    proposal_count = op.ReduceSum(op.Cast(there, to=7))
    used = op.Max(proposal_count, op.Add(row_count, one))
    room = op.Add(op.Shape(similarity, start=0, end=1), one)
    pads = op.Concat(op.Constant(value_ints=[0, 0, 0]), room, axis=0)
    similarity = op.Where(op.Unsqueeze(there, [0]), similarity, zero)
    cost = op.Neg(op.Pad(similarity, pads))
    columns = op.Range(op.Constant(value_int=0), op.Squeeze(op.Add(proposals, room)), one)
    counted = op.And(op.Unsqueeze(alive, [1]), op.Unsqueeze(op.Less(columns, used), [0]))
    inside = op.Cast(counted, to=1)
    height = op.Cast(op.Squeeze(op.Max(row_count, one)), to=1)
    width = op.Cast(op.Squeeze(used), to=1)

    # Initial assignment: one 1 in every row.
    nearest = op.ArgMin(op.Where(counted, cost, far), axis=0, keepdims=1)
    order = op.Range(op.Constant(value_int=0), op.Squeeze(op.Sub(room, one)), one)
    least = op.Equal(op.Unsqueeze(order, [1]), nearest)
    highest = op.ReduceMax(op.Where(counted, cost, op.Neg(far)))
    kept = op.Where(counted, op.Where(least, cost, highest), far)
    chosen = op.ArgMin(kept, axis=1, keepdims=1)
    x = op.Mul(op.Cast(op.Equal(op.Unsqueeze(columns, [0]), chosen), to=1), inside)

    slope = op.Mul(op.Mul(cost, rate), inside)
    total = op.Identity(x)
    entries = op.Sub(x, x)
    sums = op.Sub(x, x)
    for _ in range(steps):
        x = op.Sub(x, slope)
        total = op.Add(total, x)
        for _ in range(inner):
            corrected = op.Add(x, entries)
            x = op.Relu(corrected)
            entries = op.Sub(corrected, x)
            corrected = op.Add(x, sums)
            excess = op.Relu(op.Sub(op.ReduceSum(corrected, along_columns, keepdims=1), 1.0))
            x = op.Mul(op.Sub(corrected, op.Div(excess, height)), inside)
            sums = op.Sub(corrected, x)
            short = op.Div(op.Sub(op.ReduceSum(x, along_rows, keepdims=1), 1.0), width)
            x = op.Mul(op.Sub(x, short), inside)

    mean = op.Div(total, op.Cast(op.Add(steps, one), to=1))
    top = op.ReduceMax(op.Where(counted, mean, op.Neg(far)), along_rows, keepdims=1)
    peaks = op.Where(op.Less(mean, op.Sub(top, EQUAL)), zero, mean)
    x = op.Where(most, op.Mul(peaks, inside), x)
    start = op.Constant(value_ints=[0])
    assignment = op.Mul(
        op.Slice(x, start, proposals, along_rows),
        op.Cast(op.Unsqueeze(there, [0]), to=1),
    )
    return assignment


def _match_proposals_node(
    similarity: Any, alive: Any, there: Any, steps: int, inner: int, rate: float, most: bool
) -> Any:
    return _assign(
        similarity,
        alive,
        there,
        op.Constant(value_int=steps),
        op.Constant(value_int=inner),
        op.Constant(value_float=rate),
        op.Cast(op.Constant(value_int=int(most)), to=9),
    )


@torch.library.custom_op("vosengine_onnx::gather_cells", mutates_args=())
def gather_cells(x: torch.Tensor, side: int) -> torch.Tensor:
    """Space to depth: [B, C, side * h, side * w] -> [B, side * side * C, h, w]."""
    height, width = x.shape[2] // side, x.shape[3] // side
    x = x.reshape(*x.shape[:2], height, side, width, side).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(x.shape[0], -1, height, width)


@gather_cells.register_fake
def _gather_cells_shape(x: torch.Tensor, side: int) -> torch.Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, channels * side * side, height // side, width // side)


@torch.library.custom_op("vosengine_onnx::spread_cells", mutates_args=())
def spread_cells(x: torch.Tensor, side: int) -> torch.Tensor:
    """Depth to space, the inverse of `gather_cells`."""
    batch, _, height, width = x.shape
    x = x.reshape(batch, side, side, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, -1, side * height, side * width)


@spread_cells.register_fake
def _spread_cells_shape(x: torch.Tensor, side: int) -> torch.Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, channels // (side * side), side * height, side * width)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.vosengine_onnx.gather_cells.default: lambda x, side: op.SpaceToDepth(
        x, blocksize=side
    ),
    torch.ops.vosengine_onnx.spread_cells.default: lambda x, side: op.DepthToSpace(
        x, blocksize=side, mode="DCR"
    ),
    torch.ops.vosengine_onnx.roi_align.default: _roi_align_node,
    torch.ops.vosengine_onnx.match_proposals.default: _match_proposals_node,
}
