"""The GPU clock, with a simulated GPU that only counts time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import_module("onnx")  # bench/ has a file of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

clocks = import_module("clocks")


class FakeCuda:
    """The part of torch.cuda that the clock uses; calls advance simulated time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.strict = False
        self.flushed = 0

    def event(self, enable_timing: bool) -> Any:
        fake, mark = self, SimpleNamespace(at=0.0)
        mark.record = lambda: setattr(mark, "at", fake.now)
        mark.elapsed_time = lambda other: other.at - mark.at
        return mark

    def waste(self) -> Any:
        return SimpleNamespace(zero_=lambda: setattr(self, "flushed", self.flushed + 1))


@contextmanager
def captured(graph: Any, stream: Any) -> Iterator[None]:
    fake = graph.fake
    before = fake.now
    yield
    length, fake.now = fake.now - before, before

    def replay() -> None:
        fake.now += length / 2  # a replay has no gaps

    graph.replay = replay


@pytest.fixture
def event_clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = FakeCuda()
    stream = SimpleNamespace(wait_stream=lambda _: None)

    def sync_debug(mode: str) -> None:
        fake.strict = mode == "error"

    changes = {
        "Event": fake.event,
        "synchronize": lambda *_: None,
        "set_sync_debug_mode": sync_debug,
        "Stream": lambda *_: stream,
        "current_stream": lambda *_: stream,
        "stream": lambda stream: captured(SimpleNamespace(fake=FakeCuda()), stream),
        "CUDAGraph": lambda: SimpleNamespace(fake=fake),
        "graph": captured,
    }
    for name, change in changes.items():
        monkeypatch.setattr(torch.cuda, name, change)
    clock = clocks.EventClock.__new__(clocks.EventClock)
    clock.device, clock.waste = torch.device("cpu"), fake.waste()
    return clock, fake


def test_events_time_cold_warm_and_replayed(event_clock: Any) -> None:
    clock, fake = event_clock
    calls = []

    def call() -> None:
        calls.append(fake.flushed)
        fake.now += 0.25

    watches, lacking = clock.stopwatches(call)
    assert set(watches) == set(clock.modes)
    assert lacking == {}
    before, calls[:] = fake.flushed, []
    assert watches["cold"]() == pytest.approx(0.25)
    assert len(calls) == 4  # 1 ms of calls that last 0.25
    assert calls == [before + 1, before + 2, before + 3, before + 4]  # flushed before each
    calls[:] = []
    assert watches["warm"]() == pytest.approx(0.25)
    assert len(calls) == 5  # one to warm up
    assert watches["graph"]() == pytest.approx(0.125)


def test_a_call_that_waits_for_the_device_has_no_graph(event_clock: Any) -> None:
    clock, fake = event_clock

    def call() -> None:
        fake.now += 3.0
        if fake.strict:
            raise RuntimeError("called a synchronizing CUDA operation")

    watches, lacking = clock.stopwatches(call)
    assert set(watches) == {"cold", "warm"}
    assert lacking == {"graph": "no graph: called a synchronizing CUDA operation"}
    assert not fake.strict
    assert watches["cold"]() == pytest.approx(3.0)


def test_a_call_that_cannot_be_captured_has_no_graph(
    event_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refuse(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise RuntimeError("capture was invalidated")

    clock, _ = event_clock
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    watches, lacking = clock.stopwatches(lambda: None)
    assert set(watches) == {"cold", "warm"}
    assert "invalidated" in lacking["graph"]
