"""`match_proposals` in C++: every step in one call, the matrices in the L1 cache.

Supports float32 on the CPU. Runs on one thread: the problem is too small for two.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import cpu_unsupported, load
from .reference import EQUAL


def unsupported(similarity: torch.Tensor, **_: Any) -> str | None:
    if similarity.dtype != torch.float32:
        return f"wants float32, given {similarity.dtype}"
    return cpu_unsupported(similarity)


def run(
    similarity: torch.Tensor,
    *,
    steps: int = 40,
    inner: int = 5,
    rate: float = 0.1,
    answer: str = "final",
) -> torch.Tensor:
    out = torch.empty(similarity.shape, dtype=torch.float32)
    load().match_proposals_cpu(
        similarity.data_ptr(),
        similarity.stride(),
        tuple(similarity.shape),
        steps,
        inner,
        rate,
        answer == "dmm",
        EQUAL,
        out.data_ptr(),
    )
    return out
