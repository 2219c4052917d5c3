"""Prometheus metrics of the server; no label holds an id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Metrics of one server.

    sessions  called at each scrape: sessions by state
    memory    called at each scrape: maximum bytes of the streams in memory
    """

    def __init__(
        self, sessions: Callable[[], Mapping[str, int]], memory: Callable[[], int]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._sessions, self._memory = sessions, memory
        self._used = self._free = 0
        registry.register(self)
        counter = partial(Counter, registry=registry)
        seconds = partial(Histogram, buckets=SECONDS, registry=registry)
        self.frames = counter("vosengine_frames", "Frames by outcome", ["outcome"])
        self.dropped = counter("vosengine_dropped_frames", "Frames replaced by a newer one")
        self.rejections = counter(
            "vosengine_rejections", "Rejected requests and connections", ["reason"]
        )
        self.step_seconds = seconds("vosengine_step_seconds", "Duration of an engine step")
        self.queue_seconds = seconds(
            "vosengine_queue_seconds", "Time from a frame's arrival to its step"
        )
        self.batch_size = Histogram(
            "vosengine_batch_size",
            "Frames per step",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.snapshot_seconds = seconds("vosengine_snapshot_seconds", "Duration of saving a stream")
        self.failed_snapshots = counter(
            "vosengine_failed_snapshots", "Streams that could not be saved"
        )

    def hold(self, used: int, capacity: int) -> None:
        """Record how many of the engine's pages are in use."""
        self._used, self._free = used, capacity - used

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
