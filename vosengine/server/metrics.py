"""Prometheus metrics of the server; no label holds an id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class PagePools(Protocol):
    """The part of an engine's page pools that is read."""

    @property
    def used(self) -> int: ...

    @property
    def capacity(self) -> int: ...


class Metrics:
    """Metrics of one server.

    sessions  called at each scrape: sessions by state
    memory    called at each scrape: maximum bytes of the streams in memory
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
            "vosengine_frames", "Frames by outcome", ["outcome"], registry=registry
        )
        self.dropped = Counter(
            "vosengine_dropped_frames", "Frames replaced by a newer one", registry=registry
        )
        self.rejections = Counter(
            "vosengine_rejections",
            "Rejected requests and connections",
            ["reason"],
            registry=registry,
        )
        self.step_seconds = Histogram(
            "vosengine_step_seconds",
            "Duration of an engine step",
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "vosengine_queue_seconds",
            "Time from a frame's arrival to its step",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "vosengine_batch_size",
            "Frames per step",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.snapshot_seconds = Histogram(
            "vosengine_snapshot_seconds",
            "Duration of saving a stream",
            buckets=SECONDS,
            registry=registry,
        )
        self.failed_snapshots = Counter(
            "vosengine_failed_snapshots", "Streams that could not be saved", registry=registry
        )

    def hold(self, pools: PagePools) -> None:
        """Record how many of the engine's pages are in use; call it on the engine's thread."""
        self._used, self._free = pools.used, pools.capacity - pools.used

    def stepped(self, frames: int, seconds: float) -> None:
        """Record one engine step that answered `frames` frames."""
        self.step_seconds.observe(seconds)
        self.batch_size.observe(frames)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; called by prometheus_client at each scrape."""
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
            "Maximum memory of the streams in memory",
            value=self._memory(),
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
