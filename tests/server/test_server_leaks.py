"""Ended sessions leave nothing in memory. `python bench/serve.py` opens a thousand."""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import Any

import pytest
from serving import Running, bearer, one_object, running, tiny_engine, until
from stub_engine import StubEngine, StubStream

from vosengine.engine.segmenter import Segmenter
from vosengine.server.connection import Connection
from vosengine.server.outcomes import Answered
from vosengine.server.session import Session
from vosengine.server.worker import Turn

KINDS = Session, Connection, Turn, Answered, StubStream, Segmenter
SESSIONS, PARKED, CLOSED = "/v1/sessions", 1000.0, 2000.0  # seconds without a frame
FIRST, MORE = 8, 24  # sessions
EACH = 6 << 10  # bytes that a session may leave on average: less than a frame. Python's free
# lists fill at first; later it is 30 bytes


class Forgetful(StubEngine):
    """An engine that keeps no record of its streams."""

    def close(self, stream: StubStream) -> None:
        super().close(stream)
        self.opened.clear()
        self.order.clear()


def visit(server: Running, number: int) -> None:
    """A session with two frames; every other session is abandoned instead of ended."""
    session = server.open(policy="all")
    with server.connect(session) as line:
        for index in range(2):
            line.frame(index, index, None if index else one_object())
            assert line.hear()["frame"] == index
    if number % 2:
        address = f"{SESSIONS}/{session['id']}"
        assert server.http.delete(address, headers=bearer(session["token"])).status_code == 204


def left(server: Running) -> dict[str, int]:
    """The objects of a session that are still there, by type, once those that nobody has ended are
    parked, and then closed, for want of frames."""
    for seconds, done in ((PARKED, {"parked"}), (CLOSED, set())):
        for session in list(server.service._sessions.values()):
            session.used = time.monotonic() - seconds
        until(lambda done=done: {s["state"] for s in server.http.get(SESSIONS).json()} <= done, 60)
    gc.collect()
    counts = dict.fromkeys((kind.__name__ for kind in KINDS), 0)
    for instance in gc.get_objects():
        if type(instance) in KINDS:
            counts[type(instance).__name__] += 1
    return counts


@pytest.mark.parametrize("make_engine", [Forgetful, tiny_engine])
@pytest.mark.slow
def test_sessions_that_come_and_go_leave_nothing(make_engine: Any) -> None:
    engine = make_engine()
    with running(engine, park_after=PARKED, close_after=CLOSED) as server:
        for number in range(FIRST):
            visit(server, number)
        left(server)
        tracemalloc.start()
        try:
            for number in range(MORE):
                visit(server, number)
            after = left(server)
            allocated, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert max(after.values()) < MORE // 4, after  # the last ones may be in use somewhere
        assert allocated < EACH * MORE, f"{allocated} bytes after {MORE} sessions"
        assert engine.pools.used_bytes == 0
