"""`pool_regions` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

from itertools import product

import torch

from ..shapes import FLOATS, ShapeError, check, check_dtype

MOST_SAMPLES = 8


def contract(
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
) -> None:
    if not isinstance(levels, tuple) or not levels:
        given = "none" if isinstance(levels, tuple) else f"a {type(levels).__name__}"
        raise ShapeError(f"levels: wanted a tuple of one or more maps [B, C, H, W], given {given}")
    tensors = {f"levels[{i}]": (x, f"B C{i} H{i} W{i}") for i, x in enumerate(levels)}
    tensors["boxes"] = (boxes, "R 4")
    if frame is not None:
        tensors["frame"] = (frame, "R")
    if planes is not None:
        tensors["planes"] = (planes, "R Hp Wp")
    sizes = check(tensors)
    check_dtype("levels[0]", levels[0], *FLOATS)
    for name, (tensor, _) in tensors.items():
        if name not in ("boxes", "frame"):
            check_dtype(name, tensor, levels[0].dtype)
            if min(tensor.shape[-2:]) < 1:
                raise ShapeError(f"{name}: wanted at least one cell, given {list(tensor.shape)}")
    check_dtype("boxes", boxes, *FLOATS)
    if frame is not None:
        check_dtype("frame", frame, torch.int32)
    if sizes["R"] > 0 and sizes["B"] != 1 and (frame is None or sizes["B"] == 0):
        raise ShapeError(
            f"frame: wanted the image of each of the {sizes['R']} regions, 0 to B - 1, given "
            f"{'None' if frame is None else 'some'} with B = {sizes['B']}"
        )
    if len(strides) != len(levels):
        raise ValueError(
            f"strides: wanted one for each of the {len(levels)} levels, given {strides}"
        )
    if min(*strides, plane_stride) < 1:
        raise ValueError(
            "strides, plane_stride: wanted 1 or more pixels per cell, "
            f"given {strides} and {plane_stride}"
        )
    if size < 1:
        raise ValueError(f"size: wanted 1 or more bins on each side, given {size}")
    if not 1 <= sampling <= MOST_SAMPLES:
        raise ValueError(
            f"sampling: wanted 1 to {MOST_SAMPLES} samples on each side of a bin "
            f"(adaptive sampling is not supported), given {sampling}"
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
    """ROIAlign: crop boxes from several maps and resample each to size x size bins.

        extent  = (right - left) / stride        at least 1 if not aligned; y likewise
        x_k     = left / stride - h + extent (2 k + 1) / (2 size sampling),  k < size sampling;
                  h = 1/2 if aligned, else 0
        F(y, x) = 0 if y < -1, y > H, x < -1 or x > W, else F read bilinearly at
                  (min(max(y, 0), H - 1), min(max(x, 0), W - 1))
        out[i, j] = mean of F(y_k, x_l) over i sampling <= k < (i + 1) sampling, l likewise from j

    levels        one or more [B, C_l, H_l, W_l], any strides
    boxes         [R, 4]  left, top, right, bottom in pixels, right and bottom exclusive
    strides       pixels per cell of every level, 1 or more
    frame         [R] int32, index of the image of every region; may be None if B = 1. Values are
                  not checked, which would synchronise with the host: they are clamped to 0..B - 1
    planes        [R, H_p, W_p]  an additional map per region (its soft mask), any strides
    plane_stride  pixels per cell of planes, 1 or more
    size          bins on each side, 1 or more
    sampling      samples on each side of a bin, 1 to 8; no adaptive sampling
    aligned       True: cell (0, 0) has its centre at half a stride ("half_pixel" in ONNX,
                  ROIAlignV2 in Detectron2). False: at 0, as in the first Mask R-CNN
                  ("output_half_pixel")
    returns       [R, C_1 + ... + C_L (+ 1), size, size]  the levels in order, then the plane; new,
                  contiguous, dtype of the levels

    A box without area is sampled at one point (aligned) or over one cell. A reversed box is
    mirrored (aligned) or sampled over one cell. Samples outside the map are 0. A box with a
    coordinate that is not finite gives zeros. A cell that is not finite makes the bins that read it
    not finite, and may do so to others of its region and channel.

    Dtype   float16, bfloat16, float32 or float64, one for levels and planes, any of them for boxes;
            positions in float64, so that rounding does not move a sample across the border; weights
            and sums in float32 or wider.
    Device  one for all; no synchronisation with the host.
    Empty   R = 0 returns [0, C, size, size], for B = 0 too.
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape, or its dtype; ValueError for
            an option.
    Source  Mask R-CNN, section 3 (RoIAlign); DMN-AOA, section 3.1, whose "ROI pooling" is read as
            this with size 14 and sampling 2.
    """
    usable = boxes.isfinite().all(dim=1, keepdim=True)
    boxes = boxes.double().masked_fill(~usable, torch.nan)
    regions = torch.arange(len(boxes), device=boxes.device)
    if frame is None:
        image = torch.zeros_like(regions)
    else:
        image = frame.long().clamp(0, max(0, len(levels[0]) - 1))
    sources = [(*source, image) for source in zip(levels, strides, strict=True)]
    if planes is not None:
        sources.append((planes[:, None], plane_stride, regions))
    pooled = [
        _pool(maps, boxes, index, stride, size, sampling, aligned)
        for maps, stride, index in sources
    ]
    return torch.cat(pooled, dim=1).contiguous()


def _pool(
    maps: torch.Tensor,
    boxes: torch.Tensor,
    index: torch.Tensor,
    stride: int,
    size: int,
    sampling: int,
    aligned: bool,
) -> torch.Tensor:
    """Pool boxes in pixels from maps[index]: [R, C, size, size]."""
    wide = torch.promote_types(maps.dtype, torch.float32)
    left, top, right, bottom = boxes.unbind(dim=1)
    y = _positions(top, bottom, stride, size * sampling, aligned)
    x = _positions(left, right, stride, size * sampling, aligned)
    inside = (y >= -1) & (y <= maps.shape[2])
    inside = inside[:, :, None] & ((x >= -1) & (x <= maps.shape[3]))[:, None]

    samples = maps.new_zeros((), dtype=wide)
    taps = product(_taps(y, maps.shape[2]), _taps(x, maps.shape[3]))
    for (row, row_weight), (column, column_weight) in taps:
        weight = (row_weight[:, :, None] * column_weight[:, None]).to(wide)
        cells = maps[index[:, None, None], :, row[:, :, None], column[:, None]]  # [R, y, x, C]
        samples = samples + weight[..., None] * cells.to(wide)
    samples = samples.masked_fill(~inside[..., None], 0)
    bins = samples.view(len(boxes), size, sampling, size, sampling, maps.shape[1]).mean(dim=(2, 4))
    return bins.movedim(3, 1).to(maps.dtype)


def _positions(
    start: torch.Tensor, end: torch.Tensor, stride: int, count: int, aligned: bool
) -> torch.Tensor:
    """Return sample positions along one axis [R, count] in cells, NaN if the box is."""
    extent, first = (end - start) / stride, start / stride
    if aligned:
        first = first - 0.5
    else:
        extent = extent.clamp(min=1)
    odd = 2 * torch.arange(count, device=start.device) + 1
    return first[:, None] + extent[:, None] * odd / (2 * count)


def _taps(
    position: torch.Tensor, cells: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return the two neighbouring cells of every position (equal at the border) and weights."""
    position = position.nan_to_num(0).clamp(0, cells - 1)
    low = position.floor()
    high = (low + 1).clamp(max=cells - 1)
    return (low.long(), 1 - (position - low)), (high.long(), position - low)
