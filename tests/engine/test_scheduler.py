"""Scheduling: no starvation, frames stay in order, prompts are not batched."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vosengine.engine.scheduler import next_batch


def take_next(pending: dict[Any, Any], max_batch: int) -> list[Any]:
    """Take the streams whose frames are next."""
    streams = next_batch(pending, max_batch)
    for stream in streams:
        del pending[stream]
    return streams


def test_the_oldest_goes_first_with_those_of_its_group() -> None:
    pending = {"a": 1, "b": 2, "c": 1, "d": 1}
    assert [take_next(pending, 2) for _ in range(4)] == [["a", "c"], ["b"], ["d"], []]


def test_a_prompted_frame_goes_alone_and_nobody_overtakes_for_long() -> None:
    pending = {"a": 1, "b": None, "c": 1, "d": None}
    assert [take_next(pending, 8) for _ in range(4)] == [["a", "c"], ["b"], ["d"], []]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5), st.sampled_from((0, 1, None))),
        st.just(("pick",)),
    ),
    max_size=60,
)


@given(EVENTS, st.integers(1, 4))
def test_every_frame_goes_once_and_the_oldest_at_every_pick(
    events: list[tuple[Any, ...]], max_batch: int
) -> None:
    pending: dict[int, int | None] = {}
    for kind, *rest in events:
        if kind == "add":
            pending.setdefault(*rest)
            continue
        before = list(pending.items())
        chosen = take_next(pending, max_batch)
        picked = [(stream, key) for stream, key in before if stream in chosen]
        assert [stream for stream, _ in picked] == chosen
        assert chosen[:1] == [stream for stream, _ in before[:1]]
        assert len(chosen) <= max_batch
        if len(chosen) > 1:
            assert len({key for _, key in picked}) == 1 and picked[0][1] is not None


def test_it_does_without_torch() -> None:
    """Loaded from its file, not through the package."""
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); assert 'torch' not in sys.modules, 'torch'"
    )
    path = __file__.replace("tests/engine/test_scheduler.py", "vosengine/engine/scheduler.py")
    subprocess.run([sys.executable, "-c", code, path], check=True)
