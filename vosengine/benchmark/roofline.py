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
SIDE = {"cuda": 8192, "cpu": 1536}  # of the square matrices of the GEMM
COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes


@dataclass(frozen=True)
class Work:
    """Work of one step.

    flop    floating-point operations of convolutions and matrix products, two per multiply-add
    values  elements of weights and state, each counted once
    """

    flop: float
    values: int


@dataclass(frozen=True)
class Roofline:
    """Lower bounds of the time of a step.

    compute_ms  its FLOPs at the rate of a large matrix product
    traffic_ms  its bytes (weights and state, each read once) at the bandwidth of a copy
    """

    gflop: float
    mib: float
    compute_ms: float
    traffic_ms: float


@dataclass(frozen=True)
class Rates:
    """Measured rates of a device: matrix products in FLOP/s by dtype, copies in bytes/s (bytes read
    plus bytes written)."""

    flops: dict[torch.dtype, float]
    bandwidth: float

    def roofline(self, work: Work, dtype: torch.dtype) -> Roofline:
        """Return the bounds for that work in that dtype."""
        held = work.values * dtype.itemsize
        return Roofline(
            gflop=round(work.flop / 1e9, 1),
            mib=round(held / 2**20, 1),
            compute_ms=round(1e3 * work.flop / self.flops[dtype], 3),
            traffic_ms=round(1e3 * held / self.bandwidth, 3),
        )


@torch.no_grad()
def measure_rates(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Rates:
    """Measure the rates of a device, each the best of a few rounds."""
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
    """Count the work of `step`, the next step of a warmed-up Segmenter. Its ops must run on the
    reference backend, since torch counts only its own operators."""
    with FlopCounterMode(display=False) as counter:
        step()
    weights = sum(parameter.numel() for parameter in segmenter.method.parameters())
    state = segmenter.memory_bytes
    return Work(counter.get_total_flops(), weights + state // segmenter.dtype.itemsize)


def _best(call: Callable[[], object], device: torch.device) -> float:
    call()
    seconds = []
    for _ in range(ROUNDS):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
