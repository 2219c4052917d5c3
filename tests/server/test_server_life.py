"""Life of a session: idle, parked, resumed, saved, ended; and shutdown of the server."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import Line, Running, bearer, one_object, running, until
from stub_engine import StubEngine
from websockets.exceptions import ConnectionClosed

from vosengine.client import Client
from vosengine.errors import CapacityError, ConfigError, OutputError, ServerError, StateError
from vosengine.server import service as services
from vosengine.server.settings import Settings
from vosengine.server.store import Saved, Store


def state_of(server: Running, session: dict[str, Any]) -> str:
    return str(server.http.get(f"/v1/sessions/{session['id']}").json().get("state"))


def step(line: Line, number: int, mask: np.ndarray | None = None) -> dict[str, Any]:
    line.frame(number, number, mask)
    answer = line.hear()
    assert answer["frame"] == number, answer
    return dict(answer)


@pytest.mark.slow
def test_a_session_without_frames_is_parked_and_comes_back() -> None:
    engine = StubEngine()
    with running(engine, park_after=1.0) as server:
        session = server.open()
        with server.connect(session) as line:
            step(line, 0, one_object(4))
            assert state_of(server, session) == "live"
            until(lambda: state_of(server, session) == "parked")
            until(lambda: engine.opened[0].closed)
            status = server.http.get(f"/v1/sessions/{session['id']}").json()
            assert (status["memory_bytes"], status["ids"], status["next_frame"]) == (0, [4], 1)
            answer = step(line, 1)  # over the same connection
            assert answer["labels"][0, :2].tolist() == [1, 1] and answer["ids"] == (4,)
            assert len(engine.opened) == 2
            line.frame(0)
            assert line.hear()["repeated"]
        metrics = server.http.get("/metrics").text
        assert 'vosengine_sessions{state="parked"} ' in metrics
        assert "vosengine_snapshot_seconds_count 0.0" not in metrics


@pytest.mark.slow
def test_a_parked_session_takes_controls_too() -> None:
    with running(StubEngine(), park_after=0.2) as server:
        session = server.open()
        with server.connect(session) as line:
            step(line, 0, one_object(4))
            until(lambda: state_of(server, session) == "parked")
            line.say("remove", object=4)
            assert line.hear()["ids"] == []
            until(lambda: state_of(server, session) == "parked")
            line.say("reset")
            assert line.hear()["next_frame"] == 0
            step(line, 0, one_object(5))


@pytest.mark.slow
def test_a_session_that_nobody_uses_is_closed(tmp_path: Path) -> None:
    with running(StubEngine(), park_after=0.1, close_after=0.5, state_dir=tmp_path) as server:
        session = server.open()
        with server.connect(session) as line:
            step(line, 0, one_object())
            until(lambda: list(tmp_path.glob("*.session")))
            assert line.hear() == {"type": "closing", "reason": "closed"}
        until(lambda: server.http.get("/v1/sessions").json() == [])
        until(lambda: not list(tmp_path.iterdir()))  # the file is removed after the answer


@pytest.mark.slow
def test_who_rests_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "RESTS_AFTER", 0.2)
    engine = StubEngine()
    with running(engine, max_sessions=2) as server:
        first, second = server.open(), server.open()
        with server.connect(first) as line, server.connect(second) as other:
            step(line, 0, one_object())
            step(other, 0, one_object())
            assert server.http.post("/v1/sessions", json={}).status_code == 429
            time.sleep(0.25)
            step(other, 1)
            third = server.open()  # in the place of the one that rests the longest
            assert [state_of(server, s) for s in (first, second, third)] == [
                "parked", "live", "idle",
            ]  # fmt: skip
            line.frame(1, 1)  # none rests long enough for this one
            error = line.hear()
            assert (error["code"], error["frame"]) == ("unavailable", 1)
            time.sleep(0.25)
            assert step(line, 2)["labels"][0, 0] == 1


def test_memory_that_runs_out_is_taken_from_who_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "RESTS_AFTER", 0.2)
    engine = StubEngine()
    engine.error = CapacityError("memory: there is none left")
    with running(engine, max_memory=10_000) as server:
        session, other = server.open(), server.open()
        with server.connect(session) as line, server.connect(other) as resting:
            step(line, 0, one_object())
            step(resting, 0, one_object())
            line.frame(1, engine.poison)
            assert line.hear()["code"] == "no_memory"
            time.sleep(0.25)
            line.frame(2, engine.poison)  # the other is parked for it, which does not help here
            assert line.hear()["code"] == "no_memory"
            assert state_of(server, other) == "parked"
            step(line, 3)
        server.service.worker.used_bytes = engine.pools.used_bytes = 9_999
        answer = server.http.post("/v1/sessions", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "memory")


def test_streams_are_saved_as_they_go(tmp_path: Path) -> None:
    with running(StubEngine(), state_dir=tmp_path, autosave=3) as server:
        session = server.open()
        with server.connect(session) as line:
            for number in range(5):
                step(line, number, one_object() if number == 0 else None)
            (path,) = until(lambda: list(tmp_path.glob("*.session")))
            saved, _ = Store(tmp_path).load(session["id"])
            assert (saved.next_frame, saved.frames, saved.ids) == (3, 3, [1])
            text = path.read_bytes()
            assert session["token"].encode() not in text and b"server-token" not in text


@pytest.mark.slow
def test_a_server_that_ends_delivers_saves_and_says_so(tmp_path: Path) -> None:
    engine = StubEngine()
    with running(engine, state_dir=tmp_path) as server:
        sessions = [server.open(policy="all") for _ in range(3)]
        lines = [server.connect(session) for session in sessions]
        for line in lines:
            step(line, 0, one_object())
        engine.may_step.clear()
        for line in lines:
            line.frame(1, 1)
            line.frame(2, 2)
        until(lambda: server.service.worker._begun)
        ending = time.monotonic()
        server.stop()
        until(lambda: server.http.get("/readyz").status_code == 503)
        until(lambda: all(s.retiring for s in server.service._sessions.values()))
        assert server.http.get("/healthz").status_code == 200
        assert server.http.post("/v1/sessions", json={}).status_code == 429
        engine.may_step.set()
        begun = []
        for line in lines:
            messages = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    messages.append(line.hear())
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
            assert messages.pop() == {"type": "closing", "reason": "restart"}
            begun.append([message["frame"] for message in messages])
    assert time.monotonic() - ending < 10
    assert sorted(begun) == [[], [], [1]]  # one frame was begun; it was delivered
    for session, answered in zip(sessions, begun, strict=True):
        saved, _ = Store(tmp_path).load(session["id"])
        assert saved.next_frame == 1 + len(answered)

    with running(StubEngine(), state_dir=tmp_path) as server:
        assert {session["state"] for session in server.http.get("/v1/sessions").json()} == {
            "parked"
        }
        for session, answered in zip(sessions, begun, strict=True):
            with server.connect(session) as line:  # its token works again
                number = line.hello["next_frame"]
                assert number == 1 + len(answered)
                line.frame(0)
                assert line.hear()["repeated"]
                assert step(line, number)["labels"][0, 0] == number
        made = server.open(resume_from=sessions[0]["id"])
        assert made["id"] == sessions[0]["id"] and made["next_frame"] >= 2


@pytest.mark.slow
def test_what_cannot_go_on_here_is_refused(tmp_path: Path) -> None:
    with running(StubEngine(), state_dir=tmp_path) as server:
        sessions = [server.open() for _ in range(3)]
    paths = [tmp_path / f"{session['id']}.session" for session in sessions]
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    saved, _ = Store(tmp_path).load(sessions[1]["id"])
    Store(tmp_path).save(saved, b"no snapshot")
    (tmp_path / "notes.session").write_text("of nobody")

    class Picky(StubEngine):
        def open(self, **options: Any) -> Any:
            stream = super().open(**options)
            inner = stream.restore

            def restore(data: bytes) -> None:
                if data == b"no snapshot":
                    raise StateError("snapshot: corrupt, or no saved stream")
                inner(data)

            stream.restore = restore
            return stream

    with running(Picky(), state_dir=tmp_path) as server:
        listed = {session["id"] for session in server.http.get("/v1/sessions").json()}
        assert listed == {sessions[1]["id"], sessions[2]["id"]}
        answer = server.http.post("/v1/sessions", json={"resume_from": sessions[1]["id"]})
        assert answer.status_code == 400 and "corrupt" in answer.json()["error"]["message"]
        with server.connect(sessions[1]) as line:
            line.frame(0, 0, one_object())
            assert line.hear()["code"] == "unavailable"
            line.say("reset")
            assert line.hear()["next_frame"] == 0
            step(line, 0, one_object())
        with server.connect(sessions[2]) as line:
            step(line, 0, one_object())


@pytest.mark.slow
def test_a_disk_that_is_full_costs_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, saved: Saved, snapshot: bytes) -> None:
        raise OutputError("disk: is full")

    with running(StubEngine(), state_dir=tmp_path, autosave=1, park_after=0.3) as server:
        monkeypatch.setattr(Store, "save", full)
        session = server.open()
        with server.connect(session) as line:
            for number in range(4):
                step(line, number, one_object() if number == 0 else None)
            time.sleep(0.5)
            assert state_of(server, session) == "live"  # it stays where it is
            step(line, 4)
        assert "vosengine_failed_snapshots_total 0.0" not in server.http.get("/metrics").text


@pytest.mark.slow
def test_a_thousand_sessions_leave_nothing() -> None:
    engine = StubEngine()
    with running(engine, max_sessions=4) as server:
        for _ in range(250):
            session = server.open()
            server.http.delete(f"/v1/sessions/{session['id']}")
        assert server.service._sessions == {}
        assert all(stream.closed for stream in engine.opened)
        with httpx.Client(base_url=server.url, headers=bearer("server-token")) as client:
            assert client.get("/v1/sessions").json() == []


def test_an_engine_that_dies_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that affects every later step is reported."""

    class Fatal(BaseException):
        pass

    dead: list[bool] = []
    engine = StubEngine()
    with running(engine) as server:
        server.service.worker._on_death = lambda: dead.append(True)
        engine.error = Fatal()  # type: ignore[assignment]
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        session = server.open()
        with server.connect(session) as line:
            line.frame(0, engine.poison, one_object())
            until(lambda: dead)
            assert line.hear()["code"] == "step_failed"
            assert server.http.get("/healthz").status_code == 503
            assert server.http.get("/readyz").status_code == 503


def test_frames_answered_while_the_disk_is_busy_are_saved_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, busy, save = np.zeros((48, 64, 3), np.uint8), threading.Event(), Store.save

    def save_late(self: Store, *arguments: Any) -> None:
        assert busy.wait(10)
        save(self, *arguments)

    with running(StubEngine(), state_dir=tmp_path, autosave=1) as server:
        options: dict[str, Any] = {"encoding": "raw", "policy": "all"}
        with Client(f"{server.url}/#token=server-token", **options) as client:
            monkeypatch.setattr(Store, "save", save_late)
            for number in range(3):  # the first is being written all the while
                client.step(frame, None if number else one_object())
            busy.set()
            until(lambda: list(tmp_path.glob("*.session")))
            until(lambda: Store(tmp_path).load(client.session["id"])[0].next_frame == 3)


@pytest.mark.slow
def test_a_client_goes_on_through_a_restart_and_is_told_of_a_crash(tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    options: dict[str, Any] = {"state_dir": tmp_path, "autosave": 1}
    first = running(StubEngine(), **options)
    server = first.__enter__()
    options["port"] = int(server.url.rpartition(":")[2])
    client = Client(f"{server.url}/#token=server-token", encoding="raw", policy="all")
    with ExitStack() as stack:
        stack.callback(first.__exit__, None, None, None)
        client.__enter__()
        for number in range(3):
            answer = client.step(frame, None if number else one_object())
            assert answer is not None and answer.labels[0, 0] == number
        (path,) = until(lambda: list(tmp_path.glob("*.session")))
        store, name = Store(tmp_path), client.session["id"]
        until(lambda: store.load(name)[0].next_frame == 3)
        crashed = path.read_bytes()
        client.step(frame)
    with running(StubEngine(), **options):
        answer = client.step(frame)
        assert answer is not None and (answer.frame, answer.labels[0, 0]) == (4, 4)
    path.write_bytes(crashed)
    with running(StubEngine(), **options):
        with pytest.raises(ServerError) as raised:
            client.step(frame)
        assert raised.value.code == "went_back" and client.next_frame == 3
        answer = client.step(frame)
        assert answer is not None and (answer.frame, answer.labels[0, 0]) == (3, 3)
        client.__exit__()


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": ("with space",)}, {"allow_hosts": ("a/b",)}, {"allow_origins": ("evil",)},
        {"max_sessions": 0}, {"window": 0}, {"autosave": 5}, {"max_message": 10},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings(**{"model": "stub", **wrong})
