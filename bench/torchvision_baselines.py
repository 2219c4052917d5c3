"""Baselines by torchvision's kernels, if it is installed; see baselines.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from object_baselines import map_by_map

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


@map_by_map
def align(
    maps: torch.Tensor,
    boxes: torch.Tensor,
    stride: int,
    size: int,
    sampling: int,
    aligned: bool = True,
) -> torch.Tensor:
    """pool_regions (one image) by roi_align."""
    images = torch.arange(len(boxes), device=boxes.device) % len(maps)
    places = torch.cat((images[:, None].to(boxes.dtype), boxes), dim=1)
    return roi_align(maps, places, size, 1 / stride, sampling, aligned)


TORCHVISION: dict[str, Callable[..., Any]] = {"deform_conv": convolve, "pool_regions": align}
