"""Scheduler: no starvation, frames of a stream stay in order, prompts are not batched."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vosengine.engine.scheduler import Scheduler


def take_next(scheduler: Scheduler[Any]) -> list[Any]:
    """Take the streams whose frames are next."""
    streams = scheduler.next()
    assert scheduler.next() == streams
    for stream in streams:
        scheduler.drop(stream)
    return streams


def test_the_oldest_goes_first_with_those_of_its_group() -> None:
    scheduler = Scheduler[str](2)
    for stream, group in ("a", 1), ("b", 2), ("c", 1), ("d", 1):
        scheduler.add(stream, group, alone=False)
    assert [take_next(scheduler) for _ in range(4)] == [["a", "c"], ["b"], ["d"], []]


def test_a_prompted_frame_goes_alone_and_nobody_overtakes_for_long() -> None:
    scheduler = Scheduler[str](8)
    scheduler.add("a", 1, alone=False)
    scheduler.add("b", 1, alone=True)
    scheduler.add("c", 1, alone=False)
    assert [take_next(scheduler) for _ in range(3)] == [["a", "c"], ["b"], []]


def test_a_stream_has_one_frame_in_flight() -> None:
    scheduler = Scheduler[str](1)
    scheduler.add("a", 1, alone=False)
    assert "a" in scheduler
    with pytest.raises(ValueError, match="has a frame that waits"):
        scheduler.add("a", 1, alone=True)
    scheduler.drop("a")
    assert "a" not in scheduler
    assert scheduler.next() == []
    scheduler.drop("a")


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5), st.integers(0, 1), st.booleans()),
        st.tuples(st.just("pick")),
        st.tuples(st.just("drop"), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(EVENTS, st.integers(1, 4))
def test_every_frame_goes_once_and_the_oldest_at_every_pick(
    events: list[tuple[object, ...]], max_batch: int
) -> None:
    scheduler, waiting = Scheduler[object](max_batch), list[tuple[object, object, object]]()
    for event in events:
        kind, *rest = event
        if kind == "add" and rest[0] not in scheduler:
            scheduler.add(rest[0], rest[1], alone=bool(rest[2]))
            waiting.append((rest[0], rest[1], rest[2]))
        elif kind == "drop":
            scheduler.drop(rest[0])
            waiting = [entry for entry in waiting if entry[0] != rest[0]]
        elif kind == "pick":
            chosen = take_next(scheduler)
            picked = [entry for entry in waiting if entry[0] in chosen]
            assert [entry[0] for entry in picked] == chosen
            assert bool(chosen) == bool(waiting)
            assert len(chosen) <= max_batch
            if chosen:
                assert chosen[0] == waiting[0][0]
                assert len({entry[1] for entry in picked}) == 1
                assert len(chosen) == 1 or not any(entry[2] for entry in picked)
            waiting = [entry for entry in waiting if entry not in picked]
        assert len(scheduler) == len(waiting)


def test_it_does_without_torch() -> None:
    """Loaded from its file, not through the package."""
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); assert 'torch' not in sys.modules, 'torch'"
    )
    path = __file__.replace("tests/engine/test_scheduler.py", "vosengine/engine/scheduler.py")
    subprocess.run([sys.executable, "-c", code, path], check=True)
