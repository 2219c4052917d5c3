"""Roofline bound of a step: FLOPs / peak GEMM rate, bytes / copy bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..engine.segmenter import Segmenter
from ..timing import synchronise

ROUNDS = 5
SIDE = {"cuda": 8192, "cpu": 1536}  # of the square matrices that are multiplied
COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes


@dataclass(frozen=True)
class Work:
    """Work of one step.

    flop    two for every product of a convolution or of matrices
    values  in weights and state, each counted once
    """

    flop: float
    values: int


@dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step's time.

    compute_ms  its GFLOP at the rate of a large matrix product
    traffic_ms  its MiB (weights and state, each read once) at the bandwidth of a copy
    """

    gflop: float
    mib: float
    compute_ms: float
    traffic_ms: float


@dataclass(frozen=True)
class Rates:
    """Measured rates of a device: matrix products in FLOP/s by dtype, copies in bytes/s (read and
    written)."""

    flops: dict[torch.dtype, float]
    bandwidth: float

    def roofline(self, work: Work, dtype: torch.dtype) -> Roofline:
        """The bounds for that work in that dtype."""
        held = work.values * dtype.itemsize
        return Roofline(
            gflop=round(work.flop / 1e9, 1),
            mib=round(held / 2**20, 1),
            compute_ms=round(1e3 * work.flop / self.flops[dtype], 3),
            traffic_ms=round(1e3 * held / self.bandwidth, 3),
        )


@torch.no_grad()
def measure_rates(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Rates:
    """The best of a few rounds each."""
    side = SIDE[device.type]
    flops = {}
    for dtype in dtypes:
        matrix = torch.randn(side, side, device=device).to(dtype)
        flops[dtype] = 2 * side**3 / _best(lambda m=matrix: m @ m, device)  # type: ignore[misc]
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    return Rates(flops, 2 * source.numel() / seconds)


def work_of(segmenter: Segmenter, step: Callable[[], object]) -> Work:
    """Of a warm Segmenter whose next step is `step`; its ops must run as references, since torch
    counts its own operators alone."""
    with FlopCounterMode(display=False) as counter:
        step()
    weights = sum(parameter.numel() for parameter in segmenter.method.parameters())
    state = 0 if segmenter._state is None else segmenter._state.nbytes
    return Work(counter.get_total_flops(), weights + state // segmenter.dtype.itemsize)


def _best(call: Callable[[], object], device: torch.device) -> float:
    call()
    found = []
    for _ in range(ROUNDS):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return min(found)
