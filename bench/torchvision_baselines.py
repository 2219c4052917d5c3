"""Baselines by torchvision's kernels, if it is installed; see baselines.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

missing: str | None = None
try:
    from torchvision.ops import deform_conv2d, roi_align
except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
    missing = f"torchvision does not import: {error}"


def convolve(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, **options: Any
) -> torch.Tensor:
    """deform_conv by deform_conv2d, which infers the groups from the weight."""
    options.pop("groups", None)
    return deform_conv2d(x, offset, weight, **options)


def align(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    strides: tuple[int, ...],
    planes: torch.Tensor | None = None,
    plane_stride: int = 1,
    size: int = 14,
    sampling: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    """pool_regions (one image) by roi_align, map by map, the planes as a batch."""

    def pool(maps: torch.Tensor, image: torch.Tensor, stride: int) -> torch.Tensor:
        places = torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
        return roi_align(maps, places, size, 1 / stride, sampling, aligned)

    first = torch.zeros(len(boxes), device=boxes.device)
    pooled = [pool(level, first, s) for level, s in zip(levels, strides, strict=True)]
    if planes is not None:
        indices = torch.arange(len(boxes), device=boxes.device)
        pooled.append(pool(planes[:, None], indices, plane_stride))
    return torch.cat(pooled, dim=1)


TORCHVISION: dict[str, Callable[..., Any]] = {"deform_conv": convolve, "pool_regions": align}
