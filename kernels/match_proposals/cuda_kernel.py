"""`match_proposals` in CUDA: every step in one launch of one block.

Rounds of projections are sequential, so the time is their latency. Up to 16 objects and 64
proposals one warp keeps all matrices in registers; a round is 5 dependent shuffles (about 25 cycles
each) and some 20 dependent arithmetic instructions (4 each): about 200 cycles. The 200 rounds of
the defaults take about 40 000 cycles, 25 us at 1.7 GHz, for 3 objects and 30 proposals, and about
twice that for 16 and 64, where arithmetic is no longer hidden. Larger problems use shared memory,
with two barriers and about 600 cycles per round. Estimated, not yet timed on a GPU.

Supports float32, float16 and bfloat16 with any strides, as long as the problem fits into the shared
memory of a block: on the smallest chips 12 bytes for each of 5 400 pairs.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import load
from ..gpu import ELEMENTS, cuda_unsupported, for_chip, stream_of
from ..resources import SHARED_LIMIT
from .reference import EQUAL


def unsupported(similarity: torch.Tensor, *, answer: str = "final", **_: Any) -> str | None:
    if similarity.dtype not in ELEMENTS:
        return f"wants float32, float16 or bfloat16, given {similarity.dtype}"
    reason = cuda_unsupported(similarity)
    if reason is not None:
        return reason
    objects, proposals = similarity.shape
    columns = max(proposals, objects + 1)
    needed = 4 * columns * (3 + objects * (4 if answer == "dmm" else 3))
    most = for_chip(SHARED_LIMIT, similarity.device)
    if needed > most << 10:
        return (
            f"wants at most {most} KiB of shared memory, given {objects} objects and {proposals} "
            f"proposals, which need {-(-needed >> 10)}"
        )
    return None


def run(
    similarity: torch.Tensor,
    *,
    steps: int = 40,
    inner: int = 5,
    rate: float = 0.1,
    answer: str = "final",
) -> torch.Tensor:
    out = torch.empty(similarity.shape, dtype=similarity.dtype, device=similarity.device)
    load().match_proposals_cuda(
        similarity.data_ptr(),
        similarity.stride(),
        tuple(similarity.shape),
        steps,
        inner,
        rate,
        answer == "dmm",
        EQUAL,
        out.data_ptr(),
        ELEMENTS[similarity.dtype],
        stream_of(similarity),
    )
    return out
