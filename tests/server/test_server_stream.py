"""A session's WebSocket: the whole protocol, with a stub engine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from serving import Line, Running, one_object, running, until
from stub_engine import StubEngine
from websockets.exceptions import ConnectionClosed

from vosengine.server import protocol


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


@pytest.fixture
def server(engine: StubEngine) -> Iterator[Running]:
    with running(engine) as running_server:
        yield running_server


def begun(line: Line, frames: int = 1) -> None:
    """Results of frames 0 .. frames - 1."""
    for number in range(frames):
        line.frame(number, number, one_object() if number == 0 else None)
        assert line.hear()["frame"] == number


def test_hello_says_what_the_client_needs(server: Running) -> None:
    session = server.open()
    with server.connect(session) as line:
        assert line.hello == {
            "type": "hello", "session": session["id"], "next_frame": 0, "window": 2, "ids": [],
            "size": None, "policy": "latest", "reply": "labels",
        }  # fmt: skip
        begun(line)
    with server.connect(session) as line:
        assert line.hello["next_frame"] == 1
        assert line.hello["ids"] == [1]
        assert line.hello["size"] == [48, 64]


def test_an_answer_holds_the_labels_and_the_times(server: Running) -> None:
    with server.connect(server.open()) as line:
        line.frame(0, 7, one_object(3))
        answer = line.hear()
        wanted = one_object(3)
        wanted[0, :2] = 0, 7
        np.testing.assert_array_equal(answer.pop("labels"), wanted)
        assert answer.pop("queue_ms") >= 0 and answer.pop("step_ms") >= 0
        assert answer == {"type": "answer", "frame": 0, "ids": (3,), "repeated": False}


@pytest.mark.parametrize("reply", protocol.REPLIES)
def test_masks_come_as_they_are_asked_for(server: Running, reply: str) -> None:
    with server.connect(server.open(reply=reply)) as line:
        assert line.hello["reply"] == reply
        line.frame(0, 1, one_object())
        labels = line.hear()["labels"]
        np.testing.assert_array_equal(labels[1:], one_object()[1:])
        other = "rle" if reply == "labels" else "labels"
        line.say("reply", encoding=other)
        line.frame(1)
        message = line.socket.recv(10)
        assert protocol.unpack(message, protocol.ANSWER).encoding == protocol.REPLIES[other]


def test_a_frame_that_is_sent_again_is_answered_again(server: Running, engine: StubEngine) -> None:
    with server.connect(server.open()) as line:
        begun(line, 2)
        for number in (0, 1):
            line.frame(number, 99)  # whatever it holds: the id counts
            again = line.hear()
            assert again["repeated"] and again["frame"] == number
            assert again["labels"][0, 1] == number
        assert len(engine.order) == 2


def test_a_frame_under_way_that_is_sent_again_is_answered_once(
    server: Running, engine: StubEngine
) -> None:
    session = server.open()
    with server.connect(session) as line:
        engine.may_step.clear()
        line.frame(0, 0, one_object())
        until(lambda: server.service.worker._begun)
    with server.connect(session) as line:
        assert line.hello["next_frame"] == 1
        line.frame(0, 0, one_object())
        line.say("nothing")  # answered at once: by then the frame was read
        assert line.hear()["code"] == "bad_request"
        engine.may_step.set()
        assert line.hear()["frame"] == 0
        line.frame(1)
        assert line.hear()["frame"] == 1  # and nothing in between


@pytest.mark.parametrize("number", [2, 5000, 1 << 63])
def test_an_id_that_skips_ahead_is_refused(server: Running, number: int) -> None:
    with server.connect(server.open()) as line:
        begun(line)
        line.frame(number)
        error = line.hear()
        assert (error["type"], error["code"], error["frame"]) == ("error", "bad_frame_id", number)
        assert "next_frame 1" in error["message"]
        line.frame(1)
        assert line.hear()["frame"] == 1


def test_an_id_of_long_ago_is_refused(server: Running) -> None:
    with server.connect(server.open()) as line:
        begun(line, 8)
        line.frame(1)
        assert line.hear()["code"] == "bad_frame_id"
        line.frame(2)
        assert line.hear()["repeated"]  # window + 4 are kept


def test_a_bad_frame_changes_nothing_and_returns_its_credit(server: Running) -> None:
    with server.connect(server.open()) as line:
        line.frame(0)  # without the mask that it needs
        error = line.hear()
        assert (error["code"], error["frame"]) == ("bad_frame", 0)
        assert "mask" in error["message"]
        line.socket.send(protocol.pack(protocol.FRAME, protocol.JPEG, 1, b"\xff\xd8 no JPEG"))
        assert line.hear()["code"] == "bad_frame"
        line.frame(2, 5, one_object())
        answer = line.hear()
        assert answer["frame"] == 2
        assert answer["labels"][0, 0] == 0  # the engine's first
        line.frame(1)
        assert line.hear()["code"] == "bad_frame"  # the same outcome again


def test_a_step_that_raises_costs_its_frame_alone(server: Running, engine: StubEngine) -> None:
    with server.connect(server.open()) as line, server.connect(server.open()) as other:
        begun(line)
        begun(other)
        line.frame(1, engine.poison)
        error = line.hear()
        assert (error["code"], error["frame"]) == ("step_failed", 1)
        assert "out of luck" not in error["message"]
        line.frame(2, 2)
        assert line.hear()["labels"][0, 0] == 1
        other.frame(1, 1)
        assert other.hear()["frame"] == 1


def test_latest_drops_the_oldest_that_is_not_begun(server: Running, engine: StubEngine) -> None:
    with server.connect(server.open()) as line:
        begun(line)
        engine.may_step.clear()
        line.frame(1)
        until(lambda: server.service.worker._begun)
        for number in (2, 3, 4):
            line.frame(number, number)
        dropped = [line.hear() for _ in range(2)]
        assert [message["frames"] for message in dropped] == [[2], [3]]
        assert all(
            message["type"] == "dropped" and message["reason"] == "newer" for message in dropped
        )
        engine.may_step.set()
        assert [line.hear()["frame"] for _ in range(2)] == [1, 4]
        line.frame(2)
        assert line.hear()["frames"] == [2]  # dropped it stays


def test_latest_never_drops_a_mask(server: Running, engine: StubEngine) -> None:
    with server.connect(server.open()) as line:
        begun(line)
        engine.may_step.clear()
        line.frame(1)
        until(lambda: server.service.worker._begun)
        line.frame(2, 2, one_object(2))
        line.frame(3, 3)
        line.frame(4, 4)
        assert line.hear()["frames"] == [3]
        engine.may_step.set()
        answers = [line.hear() for _ in range(3)]
        assert [answer["frame"] for answer in answers] == [1, 2, 4]
        assert answers[1]["ids"] == (2,)


def test_latest_exchanges_the_frame_of_a_turn_that_has_not_come(
    server: Running, engine: StubEngine
) -> None:
    """A frame that waits for another stream's frame is replaced too."""
    with server.connect(server.open()) as line, server.connect(server.open()) as other:
        begun(line)
        begun(other)
        engine.may_step.clear()
        other.frame(1)
        until(lambda: server.service.worker._begun)
        line.frame(1, 1)
        until(lambda: server.service.worker._turns or server.service.worker._inbox.qsize())
        line.frame(2, 2)
        assert line.hear()["frames"] == [1]
        engine.may_step.set()
        answer = line.hear()
        assert answer["frame"] == 2 and answer["labels"][0, 1] == 2


def test_a_mask_whose_turn_has_not_come_is_not_exchanged(
    server: Running, engine: StubEngine
) -> None:
    with server.connect(server.open()) as line, server.connect(server.open()) as other:
        begun(line)
        begun(other)
        engine.may_step.clear()
        other.frame(1)
        until(lambda: server.service.worker._begun)
        line.frame(1, 1, one_object(2))
        until(lambda: server.service.worker._turns or server.service.worker._inbox.qsize())
        for number in (2, 3):
            line.frame(number, number)
        assert line.hear()["frames"] == [2]
        engine.may_step.set()
        answers = [line.hear() for _ in range(2)]
        assert [(answer["frame"], answer["ids"]) for answer in answers] == [(1, (2,)), (3, (2,))]


def test_all_answers_everything_and_reads_no_more_than_its_window(
    server: Running, engine: StubEngine
) -> None:
    session = server.open(policy="all")
    with server.connect(session) as line:
        begun(line)
        engine.may_step.clear()
        for number in range(1, 21):
            line.frame(number, number)
        until(lambda: server.service.worker._begun)
        status = server.http.get(f"/v1/sessions/{session['id']}").json()
        assert status["next_frame"] <= 1 + 2
        engine.may_step.set()
        assert [line.hear()["frame"] for _ in range(20)] == list(range(1, 21))
        assert server.http.get(f"/v1/sessions/{session['id']}").json()["dropped"] == 0


def test_objects_are_removed_after_the_frames_before(server: Running) -> None:
    mask = one_object()
    mask[30:40, :20] = 2
    with server.connect(server.open(policy="all")) as line:
        line.frame(0, 0, mask)
        line.say("remove", object=1)
        line.frame(1)
        assert line.hear()["ids"] == (1, 2)
        assert line.hear() == {"type": "removed", "object": 1, "ids": [2]}
        assert line.hear()["ids"] == (2,)
        for wrong in ({"object": 1}, {"object": "2"}, {"object": True}, {}):
            line.say("remove", **wrong)
            error = line.hear()
            assert error["type"] == "error" and error["frame"] is None


def test_reset_begins_anew(server: Running) -> None:
    with server.connect(server.open()) as line:
        begun(line, 3)
        line.say("reset")
        hello = line.hear()
        assert (hello["type"], hello["next_frame"], hello["ids"]) == ("hello", 0, [])
        line.image(0, np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), np.uint8))
        answer = line.hear()
        assert answer["frame"] == 0 and answer["labels"].shape == (40, 40)
        assert not answer["repeated"]


def test_held_frames_are_answered_later_and_flushed() -> None:
    with running(StubEngine(latency=2)) as server:  # noqa: SIM117
        with server.connect(server.open(policy="all")) as line:
            line.frame(0, 0, one_object())
            assert line.hear() == {"type": "held", "frame": 0}
            line.socket.send(b"\x01" + b"\x00" * 7 + (1).to_bytes(8, "little"))  # empty
            assert line.hear()["frame"] == 1
            line.frame(2, 2)
            assert line.hear() == {"type": "held", "frame": 2}
            line.frame(3, 3)
            assert line.hear()["frame"] == 0
            assert line.hear() == {"type": "held", "frame": 3}
            line.frame(0)
            assert line.hear()["repeated"]
            line.frame(3)
            assert line.hear() == {"type": "held", "frame": 3}
            line.say("flush")
            assert [line.hear()["frame"] for _ in range(2)] == [2, 3]
            assert line.hear() == {"type": "flushed"}


def test_a_newer_connection_takes_over(server: Running) -> None:
    session = server.open()
    with server.connect(session) as line:
        begun(line)
        with server.connect(session) as newer:
            assert line.hear() == {"type": "closing", "reason": "taken over"}
            with pytest.raises(ConnectionClosed) as closed:
                line.hear()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409
            newer.frame(1)
            assert newer.hear()["frame"] == 1


def test_a_deleted_session_says_so(server: Running) -> None:
    session = server.open()
    with server.connect(session) as line:
        assert server.http.delete(f"/v1/sessions/{session['id']}").status_code == 204
        assert line.hear() == {"type": "closing", "reason": "closed"}


@pytest.mark.parametrize(
    "message", ["no JSON", "[1]", "9" * 5000, b"", b"\x00" * 15, b"\x02" + b"\x00" * 15,
                b"\x01\x01\x00\x00\xff\xff\xff\xff" + b"\x00" * 8],
)  # fmt: skip
@pytest.mark.slow
def test_what_is_no_message_ends_the_connection(server: Running, message: str | bytes) -> None:
    session = server.open()
    with server.connect(session) as line:
        begun(line)
        line.socket.send(message)
        assert line.hear()["code"] == "bad_message"
        assert line.hear()["reason"] == "bad message"
        with pytest.raises(ConnectionClosed) as closed:
            line.hear()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4400
    with server.connect(session) as line:
        line.frame(1)
        assert line.hear()["frame"] == 1


def test_an_unknown_request_is_an_error_and_no_more(server: Running) -> None:
    with server.connect(server.open()) as line:
        for wrong in ({"type": "zoom"}, {"type": None}, {}, {"type": "reply", "encoding": "gif"}):
            line.socket.send(json.dumps(wrong))
            assert line.hear()["code"] == "bad_request"
        begun(line)


def test_frames_that_fail_together_are_tried_one_by_one() -> None:
    engine = StubEngine(max_batch=4)
    with running(engine) as server:
        lines = [server.connect(server.open()) for _ in range(4)]
        for line in lines:
            begun(line)
        engine.may_step.clear()
        lines[0].frame(1, 1)
        until(lambda: server.service.worker._begun)
        for line in lines[1:]:
            line.frame(1, engine.poison if line is lines[2] else 1)
        worker = server.service.worker
        until(lambda: len(worker._turns) + worker._inbox.qsize() == 3)
        engine.joins = True
        engine.may_step.set()
        types = [line.hear()["type"] for line in lines]
        assert types == ["answer", "answer", "error", "answer"]
        assert not engine.joins
        for line in lines:
            line.frame(2, 2)
            assert line.hear()["labels"][0, 0] == (1 if line is lines[2] else 2)
            line.socket.close()
