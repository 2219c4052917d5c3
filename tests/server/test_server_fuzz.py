"""Thousands of wrong messages, and requests made up from the server's own description: no error
that was not foreseen, no hang, and the next client is served.

The suite has the server read 500 messages and asks 4 examples of each operation; FUZZ=N has 5/2 N
messages and N / 50 examples: `make fuzz`, whose N is 2000, 5,000 and 40.
"""

from __future__ import annotations

import json
import logging
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from serving import TOKEN, Line, Running, one_object, running
from starlette.websockets import WebSocket
from stub_engine import StubEngine
from websockets.exceptions import ConnectionClosed

from vosengine.server import protocol

FUZZ = int(os.environ.get("FUZZ", "0"))
MESSAGES = max(500, 5 * FUZZ // 2)
EXAMPLES = max(4, FUZZ // 50)


def message(rng: random.Random, next_frame: int) -> str | bytes:
    """An invalid message, or a valid one."""
    whole = protocol.pack(
        protocol.FRAME,
        rng.choice([0, 0, 0, 1, 2, 9, 255]),
        rng.choice([next_frame, next_frame, next_frame, 0, next_frame + 1, rng.getrandbits(64)]),
        rng.choice([protocol.SIZE.pack(32, 32) + rng.randbytes(3072), rng.randbytes(40), b""]),
        rng.choice([b"", rng.randbytes(30), MASK]),
        rng.choice([0, 0, 1, 65535]),
    )
    kind = rng.randrange(8)
    if kind < 4:
        return whole
    if kind == 4:  # a byte of the header changed
        place = rng.randrange(protocol.HEADER.size)
        return whole[:place] + rng.randbytes(1) + whole[place + 1 :]
    if kind == 5:
        return whole[: rng.randrange(len(whole) + 1)]
    types: list[Any] = ["remove", "reset", "flush", "reply", "frame", None, 5, [], {}, "x" * 50]
    values: list[Any] = [1, -1, 1e300, "labels", "rle", True, None, [1], {"a": 1}, "\ud800"]
    fields = {
        "type": rng.choice(types),
        rng.choice(["object", "encoding", "z"]): rng.choice(values),
    }
    text = json.dumps(fields)
    return text if kind == 6 else text[: rng.randrange(len(text) + 1)]


MASK = protocol.image_bytes(one_object()[:32, :32].copy(), ".png")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Number of messages that the server has read."""
    receive, messages = WebSocket.receive, [0]

    async def receive_and_count(self: WebSocket) -> Any:
        message = await receive(self)
        messages[0] += message["type"] == "websocket.receive"
        return message

    monkeypatch.setattr(WebSocket, "receive", receive_and_count)
    return lambda: messages[0]


def test_wrong_messages_are_refused_one_by_one(
    caplog: pytest.LogCaptureFixture, read: Callable[[], int]
) -> None:
    rng = random.Random(11 + FUZZ)
    engine = StubEngine()
    engine.poison = -1
    with running(engine) as server:
        session, cut = server.open(policy="all"), 0
        while read() < MESSAGES:
            with server.connect(session) as line, suppress(ConnectionClosed):
                number = line.hello["next_frame"]
                while read() < MESSAGES:
                    line.socket.send(message(rng, number))
                    number = max(number, drain(line, number))
            cut += 1
        other = server.open()
        for current in (session, other):
            with server.connect(current) as line:
                line.say("reset")
                assert line.hear()["type"] == "hello"
                line.frame(0, 0, one_object())
                assert line.hear()["type"] == "answer"
        assert server.service.worker.alive
        assert 10 < cut < MESSAGES
    unforeseen = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not unforeseen, unforeseen[0].getMessage()


def drain(line: Line, number: int) -> int:
    """Receive pending messages; returns the next frame number."""
    while True:
        try:
            received = line.socket.recv(0)
        except TimeoutError:
            return number
        if isinstance(received, bytes):
            number = max(number, struct.unpack_from("<Q", received, 8)[0] + 1)
        else:
            reply = json.loads(received)
            if reply["type"] == "hello":
                return -1
            if isinstance(reply.get("frame"), int) and reply["code"] != "bad_frame_id":
                number = max(number, reply["frame"] + 1)


def test_requests_after_the_description_cause_no_error(shared: Running, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{shared.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--max-examples", str(EXAMPLES)]
    command += [
        "--checks",
        "not_a_server_error,response_schema_conformance,status_code_conformance",
    ]
    command += ["--phases", "examples,fuzzing", "--seed", "1", "--no-color"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=90 + FUZZ, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]


@pytest.fixture
def shared() -> Any:
    with running(StubEngine()) as running_server:
        yield running_server
