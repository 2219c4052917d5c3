"""`fit_target` in C++: both layers as one 3x3 kernel, each sample read once per CG iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..extension import cpu_unsupported, load


def unsupported(
    features: torch.Tensor,
    bands: torch.Tensor,
    targets: torch.Tensor,
    sample_weight: torch.Tensor,
    kernel: torch.Tensor,
    projection: torch.Tensor | None = None,
    **_: Any,
) -> str | None:
    if features.dtype != torch.float32:
        return f"wants float32, given {features.dtype}"
    return cpu_unsupported(features, bands, targets, sample_weight, kernel, projection)


def run(
    features: torch.Tensor,
    bands: torch.Tensor,
    targets: torch.Tensor,
    sample_weight: torch.Tensor,
    kernel: torch.Tensor,
    projection: torch.Tensor | None = None,
    *,
    iterations: Sequence[int] = (10,),
    ridge: tuple[float, float] = (1e-4, 1e-2),
) -> tuple[torch.Tensor, torch.Tensor | None]:
    features, bands, targets = (_with_dense_grids(t) for t in (features, bands, targets))
    kernel = kernel.clone(memory_format=torch.contiguous_format)
    if projection is not None:
        projection = projection.clone(memory_format=torch.contiguous_format)
    load().fit_target_cpu(
        features.data_ptr(),
        features.stride()[:3],
        bands.data_ptr(),
        bands.stride()[:3],
        targets.data_ptr(),
        targets.stride()[:2],
        sample_weight.data_ptr(),
        sample_weight.stride(),
        kernel.data_ptr(),
        0 if projection is None else projection.data_ptr(),
        (*features.shape, kernel.shape[1]),
        tuple(iterations),
        ridge,
        torch.get_num_threads(),
    )
    return kernel, projection


def _with_dense_grids(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if each [h, w] grid is contiguous, else a copy; outer strides are free."""
    height, width = tensor.shape[-2:]
    dense = width == 1 or tensor.stride(-1) == 1
    dense = dense and (height == 1 or tensor.stride(-2) == width)
    return tensor if dense else tensor.contiguous()
