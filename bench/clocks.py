"""Stopwatches for one call: the host's clock on the CPU, events on a GPU with the cache cold, warm,
and under replay of a captured graph.

A stopwatch is called for one sample and returns milliseconds of one call. On a GPU a sample is the
mean over as many calls as make it long against the resolution of an event.
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
    """modes: what is measured, the first of them the one that results are ranked by.
    slow: ms a call from which a candidate sits out most rounds."""

    modes: tuple[str, ...]
    slow: float

    def stopwatches(self, call: Call) -> tuple[dict[str, Stopwatch], dict[str, str]]:
        """One for each mode that the call allows, and the reason for each other mode."""
        ...


class HostClock:
    """The CPU's: one call a sample, nothing flushed."""

    modes = ("call",)
    slow = 500.0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stopwatches(self, call: Call) -> tuple[dict[str, Stopwatch], dict[str, str]]:
        return {"call": lambda: timed(call, self.device)[1]}, {}


class EventClock:
    """A GPU's: "cold", the second-level cache overwritten before every call, "warm", call after
    call, and "graph", as warm but replayed, without the host.

    While the cache is overwritten the host runs ahead, so that cold times hold no launch latency
    but that of calls with more launches than fit into that time.
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
        found: dict[str, Stopwatch] = {
            "cold": lambda: self._cold(call, count),
            "warm": lambda: self._between(call, count),
        }
        reason = self._synchronises(call)
        if reason is not None:
            return found, {"graph": reason}
        try:
            replay = self._capture(call, count)
        except RuntimeError as error:
            return found, {"graph": f"no graph: {str(error).splitlines()[0]}"}
        found["graph"] = lambda: self._between(replay, 1) / count
        return found, {}

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

        call()  # what it reads is now in the cache, as far as it fits
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
        """Why no graph can be captured: the host waits for the device or copies to it."""
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
    """Give back what the candidates of one case held: graphs keep their memory as long as they
    live."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p20, p50, p80, p95 and mean in ms, to five digits: a GPU's calls last microseconds."""
    values = np.asarray(milliseconds, dtype=np.float64)
    found = {f"p{p}_ms": float(np.percentile(values, p)) for p in PERCENTILES}
    found["mean_ms"] = float(values.mean())
    return {name: float(f"{value:.5g}") for name, value in found.items()}
