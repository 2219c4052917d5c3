"""Exact reduction of full-size labels to the grid of a target model's scores."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..shapes import FLOATS, ShapeError, check_dtype


def reduce_labels(
    labels: torch.Tensor, pixel_weights: torch.Tensor, cells: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Express the weighted squared error of upsampled scores as a quadratic form of the scores.

        |v (U s - y)|^2 = s' N s - 2 b' s + c,   N = U' V^2 U,  b = U' V^2 y,  c = sum of (v y)^2
        bands[(dy + 1) * 3 + (dx + 1), y, x] = N[(y, x), (y + dy, x + dx)],   dy, dx in {-1, 0, 1}

    labels         [..., H, W]      y: target scores, any real number
    pixel_weights  [..., H, W]      v: one factor per pixel, squared in the objective
    cells          (h, w)           size of the grid; U is the bilinear upsampling from it to
                                    (H, W), torch's interpolate with align_corners = False
    returns        [..., 9, h, w]   bands of N; 0 where (y + dy, x + dx) is off the grid
                   [..., h, w]      b
                   [...]            c

    U reads two neighbouring rows and two neighbouring columns per pixel, so N has only these nine
    bands; U is separable, so each band is A' V^2 B with A[Y, y] = Uy[Y, y] Uy[Y, y + dy] and B
    likewise: no intermediate is larger than the label.

    Dtype   float16, bfloat16 or float32, computed and returned in float32; float64 in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape.
    """
    check_dtype("labels", labels, *FLOATS)
    check_dtype("pixel_weights", pixel_weights, labels.dtype)
    if labels.ndim < 2 or 0 in labels.shape[-2:]:
        raise ShapeError(f"labels: wanted [..., H, W], not empty, given {list(labels.shape)}")
    if pixel_weights.shape != labels.shape or pixel_weights.device != labels.device:
        raise ShapeError(
            f"pixel_weights: wanted {list(labels.shape)} on {labels.device}, as labels, given "
            f"{list(pixel_weights.shape)} on {pixel_weights.device}"
        )
    if min(cells) < 1:
        raise ShapeError(f"cells: wanted at least (1, 1), given {tuple(cells)}")
    wide = torch.promote_types(labels.dtype, torch.float32)
    squares = pixel_weights.to(wide).square()
    weighted = squares * labels.to(wide)
    up_y = _upsampling(cells[0], squares.shape[-2], squares)
    up_x = _upsampling(cells[1], squares.shape[-1], squares)
    rows = torch.einsum("iYy,...YX->...iyX", _neighbour_products(up_y), squares)
    bands = torch.einsum("...iyX,jXx->...ijyx", rows, _neighbour_products(up_x))
    targets = up_y.mT @ weighted @ up_x
    return bands.flatten(-4, -3), targets, (weighted * labels.to(wide)).sum(dim=(-2, -1))


def _upsampling(cells: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """[size, cells]: the matrix of torch's linear upsampling along one axis."""
    unit = torch.eye(cells, dtype=like.dtype, device=like.device)
    return functional.interpolate(unit[None], size=size, mode="linear", align_corners=False)[0].mT


def _neighbour_products(upsampling: torch.Tensor) -> torch.Tensor:
    """[3, size, cells]: each column times the column before it, itself and the one after it."""
    size, cells = upsampling.shape
    out = upsampling.new_zeros(3, size, cells)
    out[0, :, 1:] = upsampling[:, 1:] * upsampling[:, :-1]
    out[1] = upsampling.square()
    out[2, :, :-1] = upsampling[:, :-1] * upsampling[:, 1:]
    return out
