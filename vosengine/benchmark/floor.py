"""What a step cannot be faster than: its work over what this machine is seen to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..segmenter import Segmenter
from ..timing import synchronise

ROUNDS = 5
SIDE = {"cuda": 8192, "cpu": 1536}  # of the square matrices that are multiplied
COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes


@dataclass(frozen=True)
class Floor:
    """Of one step.

    gflop        multiplications and additions of its products and convolutions, each as one
    mib          weights and state, each read once
    compute_ms   gflop at the rate of a large product of matrices
    traffic_ms   mib at the rate of a copy
    """

    gflop: float
    mib: float
    compute_ms: float
    traffic_ms: float

    @property
    def milliseconds(self) -> float:
        return max(self.compute_ms, self.traffic_ms)


@dataclass(frozen=True)
class Rates:
    """What a device does: products in FLOP/s by dtype, copies in bytes/s, read and written."""

    flops: dict[torch.dtype, float]
    bandwidth: float


@torch.no_grad()
def measure_rates(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Rates:
    """The best of a few rounds each."""
    side = SIDE[device.type]
    flops = {}
    for dtype in dtypes:
        matrix = torch.randn(side, side, device=device).to(dtype)
        seconds = _best(lambda m=matrix: m @ m, device)
        flops[dtype] = 2 * side**3 / seconds
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    return Rates(flops, 2 * source.numel() / seconds)


def floor_of(segmenter: Segmenter, step: Callable[[], object], rates: Rates) -> Floor:
    """Of a warm Segmenter whose next step is `step`; its ops must run as references, since the
    count sees torch's own operators alone."""
    with FlopCounterMode(display=False) as counter:
        step()
    flop = counter.get_total_flops()
    weights = sum(p.numel() * p.element_size() for p in segmenter.method.parameters())
    state = segmenter._state.nbytes if segmenter._state is not None else 0
    bytes_ = weights + state
    return Floor(
        gflop=flop / 1e9,
        mib=bytes_ / 2**20,
        compute_ms=1e3 * flop / rates.flops[segmenter.dtype],
        traffic_ms=1e3 * bytes_ / rates.bandwidth,
    )


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
