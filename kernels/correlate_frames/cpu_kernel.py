"""`correlate_frames` in C++: a band matrix product per pair of rows, softmax over cached scores.

Takes float32 on the CPU. The compiled body keeps the scores of 2 to 8 neighbouring queries in the
first-level cache and never stores the volume.
"""

from __future__ import annotations

import torch

from ..extension import cpu_objection, load


def objection(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> str | None:
    number = temperature if isinstance(temperature, torch.Tensor) else None
    if query.dtype != torch.float32:
        return f"wants float32, given {query.dtype}"
    return cpu_objection(query, previous, number)


def run(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    batch, _, height, width = query.shape
    out = torch.empty(batch, 3, height, width, dtype=torch.float32)
    load().correlate_frames_cpu(
        query.data_ptr(),
        query.stride(),
        previous.data_ptr(),
        previous.stride(),
        out.data_ptr(),
        tuple(query.shape),
        radius,
        float(temperature),
        outside == "exclude",
        torch.get_num_threads(),
    )
    return out
