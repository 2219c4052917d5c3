"""What the server counts, for Prometheus; no label holds an id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class PagePools(Protocol):
    """What is read of an engine's pools."""

    @property
    def used(self) -> int: ...

    @property
    def capacity(self) -> int: ...


class Metrics:
    """Counters of one server.

    sessions  asked for whenever they are read: sessions by state
    memory    bytes that the streams in memory may come to take
    """

    def __init__(
        self, sessions: Callable[[], Mapping[str, int]], memory: Callable[[], int]
    ) -> None:
        self._registry = CollectorRegistry()
        self._sessions, self._memory = sessions, memory
        self._used = self._free = 0
        self._registry.register(self)
        registry = self._registry
        self.frames = Counter(
            "vosengine_frames", "Frames by what came of them", ["outcome"], registry=registry
        )
        self.dropped = Counter(
            "vosengine_dropped_frames", "Frames that a newer one replaced", registry=registry
        )
        self.rejections = Counter(
            "vosengine_rejections",
            "Requests and connections refused",
            ["reason"],
            registry=registry,
        )
        self.step_seconds = Histogram(
            "vosengine_step_seconds", "A step of the engine", buckets=SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "vosengine_queue_seconds",
            "From a frame's arrival to its step",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "vosengine_batch_size",
            "Frames of a step",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.snapshot_seconds = Histogram(
            "vosengine_snapshot_seconds", "A stream saved", buckets=SECONDS, registry=registry
        )
        self.failed_snapshots = Counter(
            "vosengine_failed_snapshots", "Streams that could not be saved", registry=registry
        )

    def hold(self, pools: PagePools) -> None:
        """Note how many pages of the engine are in use; on the engine's thread."""
        self._used, self._free = pools.used, pools.capacity - pools.used

    def stepped(self, frames: int, seconds: float) -> None:
        """One step of the engine, which answered for so many frames."""
        self.step_seconds.observe(seconds)
        self.batch_size.observe(frames)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """prometheus_client's way to ask for what is read, not counted."""
        states = GaugeMetricFamily("vosengine_sessions", "Sessions by state", labels=["state"])
        for state, count in self._sessions().items():
            states.add_metric([state], count)
        yield states
        pages = GaugeMetricFamily("vosengine_pages", "Pages of memory", labels=["state"])
        pages.add_metric(["used"], self._used)
        pages.add_metric(["free"], self._free)
        yield pages
        yield GaugeMetricFamily(
            "vosengine_memory_bytes",
            "What the streams in memory may come to take",
            value=self._memory(),
        )

    def text(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self._registry)
