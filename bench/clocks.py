"""Stopwatches for one call: the host clock on a CPU; CUDA events on a GPU with a cold cache, a warm
cache, and replay of a captured graph.

Calling a stopwatch takes one sample and returns the milliseconds of one call. On a GPU a sample is
the mean over enough calls to be long compared with the resolution of an event.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from vosengine.timing import timed

Call = Callable[[], Any]
Stopwatch = Callable[[], float]

PERCENTILES = (20, 50, 80, 95)


class Clock(Protocol):
    """Clock of a device.

    modes  measured modes; results are ranked by the first
    slow   ms per call from which a candidate is skipped in most rounds
    """

    modes: tuple[str, ...]
    slow: float

    def stopwatches(self, call: Call) -> tuple[dict[str, Stopwatch], dict[str, str]]:
        """Return a stopwatch for each supported mode, and the reason for each other mode."""
        ...


class HostClock:
    """CPU clock: one call per sample, caches are not flushed."""

    modes = ("call",)
    slow = 500.0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stopwatches(self, call: Call) -> tuple[dict[str, Stopwatch], dict[str, str]]:
        return {"call": lambda: timed(call, self.device)[1]}, {}


class EventClock:
    """GPU clock: "cold", the L2 cache is overwritten before every call; "warm", consecutive calls;
    "graph", as warm, replayed from a captured graph without host overhead.

    The host runs ahead while the cache is overwritten, so that cold times include no launch latency
    unless a call has more launches than fit into that time.
    """

    modes = ("cold", "warm", "graph")
    slow = 30.0
    SAMPLE = 1.0  # ms that a sample lasts, if MOST calls are enough
    MOST = 20

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.waste = torch.empty(max(4 * cache, 1 << 26), dtype=torch.uint8, device=device)

    def stopwatches(self, call: Call) -> tuple[dict[str, Stopwatch], dict[str, str]]:
        for _ in range(2):
            call()
        count = int(min(self.MOST, max(1, self.SAMPLE / max(1e-3, self._between(call, 1)))))
        stopwatches: dict[str, Stopwatch] = {
            "cold": lambda: self._cold(call, count),
            "warm": lambda: self._between(call, count),
        }
        reason = self._synchronises(call)
        if reason is not None:
            return stopwatches, {"graph": reason}
        try:
            replay = self._capture(call, count)
        except RuntimeError as error:
            return stopwatches, {"graph": f"no graph: {str(error).splitlines()[0]}"}
        stopwatches["graph"] = lambda: self._between(replay, 1) / count
        return stopwatches, {}

    def _cold(self, call: Call, count: int) -> float:
        pairs = []
        for _ in range(count):
            self.waste.zero_()
            pairs.append(self._around(call))
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in pairs) / count

    def _between(self, call: Call, count: int) -> float:
        def calls() -> None:
            for _ in range(count):
                call()

        call()  # warms the cache
        start, end = self._around(calls)
        torch.cuda.synchronize(self.device)
        return float(start.elapsed_time(end)) / count

    def _around(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    def _synchronises(self, call: Call) -> str | None:
        """Return why a graph cannot be captured (the call synchronises or copies to the device), or
        None."""
        torch.cuda.synchronize(self.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            return f"no graph: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return None

    def _capture(self, call: Call, count: int) -> Call:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(count):
                call()
        replay: Call = graph.replay
        return replay


def clock_of(device: torch.device) -> Clock:
    return EventClock(device) if device.type == "cuda" else HostClock(device)


def release(device: torch.device) -> None:
    """Free the memory of the candidates of one case, including captured graphs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """Return p20, p50, p80, p95 and mean in ms, to five digits: GPU calls take microseconds."""
    values = np.asarray(milliseconds, dtype=np.float64)
    digits = {f"p{p}_ms": float(np.percentile(values, p)) for p in PERCENTILES}
    digits["mean_ms"] = float(values.mean())
    return {name: float(f"{value:.5g}") for name, value in digits.items()}
