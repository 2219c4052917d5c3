"""`group_centres` in ONNX's own operators: labels alone, which are all that D-Net's graph needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20

from ... import kernels as ops

LOWEST = -3.4e38  # replaces heat that is not finite


def group_centres(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> tuple[torch.Tensor]:
    """The labels [1, H, W] of one image."""
    maps = heatmap[0], offset[0], foreground[0]
    labels: torch.Tensor = _labels(*maps, threshold, window, limit)
    return (labels[None],)


@torch.library.custom_op("vosengine_onnx::group_centres", mutates_args=())
def _labels(
    heat: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    threshold: float,
    window: int,
    limit: int,
) -> torch.Tensor:
    """heat [H, W], offset [2, H, W], foreground [H, W] -> labels [H, W] uint8."""
    options = {"threshold": threshold, "window": window, "limit": limit}
    labels = ops.group_centres.reference(heat[None], offset[None], foreground[None], **options)[0]
    result: torch.Tensor = labels[0].clone()
    return result


_labels.register_fake(lambda heat, *_: torch.empty_like(heat, dtype=torch.uint8))


def _labels_node(
    heat: Any, offset: Any, foreground: Any, threshold: float, window: int, limit: int
) -> Any:
    """Distances are computed only between actual centres and foreground pixels."""
    op = opset20
    heat = op.Where(op.Or(op.IsInf(heat), op.IsNaN(heat)), LOWEST, heat)
    hot = op.Greater(op.Cast(heat, to=11), op.Cast(threshold, to=11))
    peak = op.And(hot, _leads_its_window(heat, window // 2))
    count = op.ReduceSum(op.Cast(peak, to=7), keepdims=0)
    # Without centres the first cell is used as one: the foreground is one group.
    count = op.Reshape(op.Min(op.Max(count, 1), limit), [1])
    _, cells = op.TopK(op.Reshape(op.Where(peak, heat, LOWEST), [-1]), count)
    width = op.Shape(heat, start=1, end=2)
    centre_y = op.Unsqueeze(op.Cast(op.Div(cells, width), to=1), [1])  # [K, 1]
    centre_x = op.Unsqueeze(op.Cast(op.Mod(cells, width), to=1), [1])
    pixels = op.Reshape(op.NonZero(op.Reshape(foreground, [-1])), [-1])  # [n]
    y = op.Cast(op.Div(pixels, width), to=1)
    x = op.Cast(op.Mod(pixels, width), to=1)
    offset = op.Gather(op.Reshape(offset, [2, -1]), pixels, axis=1)
    from_y = op.Add(op.Sub(y, centre_y), op.Slice(offset, [0], [1], [0]))  # [K, n]
    from_x = op.Add(op.Sub(x, centre_x), op.Slice(offset, [1], [2], [0]))
    distances = op.Add(op.Mul(from_y, from_y), op.Mul(from_x, from_x))
    joined = op.ArgMin(distances, axis=0, keepdims=0)  # [n]
    nothing = op.Expand(op.Cast(0, to=2), op.Shape(op.Reshape(heat, [-1])))
    labels = op.ScatterElements(nothing, pixels, op.Cast(op.Add(joined, 1), to=2))
    return op.Reshape(labels, op.Shape(heat))


def _leads_its_window(heat: Any, radius: int) -> Any:
    """[H, W] bool: maximum of the window of that radius; the first in scan order if tied."""
    op = opset20
    if radius == 0:
        return op.Equal(heat, heat)
    side = 2 * radius + 1
    sides = [0, 0, radius, radius] * 2
    padded = op.Pad(op.Unsqueeze(heat, [0, 1]), sides, LOWEST)
    across = _pool(padded, 1, side)  # [1, 1, H + 2 radius, W]
    around = _pool(across, side, 1)
    above = _pool(op.Slice(across, [0], [-radius - 1], [2]), radius, 1)
    left = _pool(op.Slice(padded, [radius, 0], [-radius, -radius - 1], [2, 3]), 1, radius)
    around, above, left = (op.Squeeze(each, [0, 1]) for each in (around, above, left))
    leads = op.And(op.GreaterOrEqual(heat, around), op.Greater(heat, above))
    return op.And(leads, op.Greater(heat, left))


def _pool(x: Any, height: int, width: int) -> Any:
    greatest, _ = opset20.MaxPool(x, kernel_shape=[height, width])
    return greatest


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.vosengine_onnx.group_centres.default: _labels_node
}
