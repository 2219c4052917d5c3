"""Measured ceilings of a device: bandwidth of a large copy, rate of a large matrix product."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from clocks import Call
from costs import Cost

from vosengine.timing import timed

RUNS = 10
SLOW = 500.0  # ms
ON_GPU = (8192, 1 << 30)  # side of the matrices, bytes to copy
ON_CPU = (1024, 1 << 26)


@dataclass(frozen=True)
class Ceilings:
    """Measured ceilings.

    matmul_tflops  of a square product of random matrices in the dtype (float32: without TF32)
    copy_gb_per_s  bytes read plus bytes written, device to device
    """

    matmul_tflops: float
    copy_gb_per_s: float
    matmul: str
    copy: str

    def judge(self, cost: Cost, milliseconds: float) -> dict[str, float | str]:
        """Return the rates of a call of that duration, and their share of the closer ceiling."""
        seconds = milliseconds * 1e-3
        rates: dict[str, float | str] = {"gb_per_s": round(cost.bytes / seconds / 1e9, 1)}
        shares = {"copy": cost.bytes / seconds / 1e9 / self.copy_gb_per_s}
        if cost.flop is not None:
            rates["tflops"] = round(cost.flop / seconds / 1e12, 3)
            shares["matmul"] = cost.flop / seconds / 1e12 / self.matmul_tflops
        bound = max(shares, key=lambda name: shares[name])
        return {**rates, "bound": bound, "of_ceiling": round(shares[bound], 4)}


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    side, size = ON_GPU if device.type == "cuda" else ON_CPU
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    matmul = _typical(lambda: torch.mm(a, b, out=product), device)
    source = torch.randint(256, (size // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    copy = _typical(lambda: target.copy_(source), device)
    return Ceilings(
        matmul_tflops=round(2 * side**3 / matmul / 1e9, 3),
        copy_gb_per_s=round(2 * size / copy / 1e6, 1),
        matmul=f"{side} x {side} x {side}, {str(dtype).removeprefix('torch.')}",
        copy=f"{size >> 20} MiB, read and written",
    )


def _typical(call: Call, device: torch.device) -> float:
    """Return milliseconds: the median of several runs by the host clock, after a warm-up. On a GPU
    one run is long enough for that clock; on a CPU slow runs (float16) are not repeated."""
    for _ in range(3):
        first = timed(call, device)[1]
        if first > SLOW:
            return first
    return statistics.median(timed(call, device)[1] for _ in range(RUNS))
