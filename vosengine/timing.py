"""Timing with device synchronisation, and summaries by percentile."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

PERCENTILES = (50, 90, 95, 99)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work; returns at once on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The call's return value, and its duration in milliseconds, device work included."""
    synchronise(device)
    start = time.perf_counter()
    value = call()
    synchronise(device)
    return value, (time.perf_counter() - start) * 1e3


def summarise(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99 and mean in ms, and frames per second (1000 / mean); {} if no times."""
    if not milliseconds:
        return {}
    values = np.asarray(milliseconds, dtype=np.float64)
    summary = {f"p{p}_ms": round(float(np.percentile(values, p)), 3) for p in PERCENTILES}
    mean = float(values.mean())
    return {**summary, "mean_ms": round(mean, 3), "fps": round(1e3 / mean, 3)}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with torch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The processor's model name, or its architecture if the name is unknown."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
