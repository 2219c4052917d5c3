"""`correlate_frames` in C++: a band matrix product per pair of rows, softmax over cached scores.

Supports float32 on the CPU; half precision is converted to float32. The kernel keeps the scores of
2 to 8 neighbouring queries in the L1 cache and never stores the cost volume.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import COMPUTED_IN_FLOAT32, cpu_unsupported, load


def unsupported(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 20.0,
    **_: Any,
) -> str | None:
    number = temperature if isinstance(temperature, torch.Tensor) else None
    if query.dtype not in COMPUTED_IN_FLOAT32:
        return f"wants float32, bfloat16 or float16, given {query.dtype}"
    return cpu_unsupported(query, previous, number)


def run(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    dtype = query.dtype
    query, previous = query.float(), previous.float()
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
    return out.to(dtype)
