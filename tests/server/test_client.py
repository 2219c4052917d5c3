"""`Client`: how frames are encoded, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving import one_object, running
from stub_engine import StubEngine

from vosengine.client import Client
from vosengine.errors import InputError, ServerError
from vosengine.server import protocol


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Encodings of the frames sent, in order."""
    sent: list[int] = []

    def recorded(*args: Any) -> bytes:
        message = build(*args)
        sent.append(protocol.unpack(message, protocol.FRAME).encoding)
        return message

    build = protocol.frame_message
    monkeypatch.setattr(protocol, "frame_message", recorded)
    return sent


@pytest.mark.parametrize("size", [(48, 64), (300, 400)])
def test_frames_are_raw_on_this_machine_if_the_server_takes_them(
    size: tuple[int, int], encodings: list[int]
) -> None:
    frame = np.full((*size, 3), 201, np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 1
    most = 3 * 300 * 400 + 8  # the pixels of a large frame, and not its header
    with (
        running(StubEngine(), max_message=most) as server,
        Client(f"{server.url}/#token=server-token", policy="all") as client,
    ):
        for number in range(2):
            answer = client.step(frame, None if number else mask)
            assert answer is not None and answer.labels.shape == size
    raw, jpeg = protocol.RAW, protocol.JPEG
    assert encodings == ([raw, raw] if size == (48, 64) else [raw, jpeg, raw, jpeg])


def test_frames_to_another_machine_are_jpeg(
    encodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LOOPBACK", ("localhost",))  # 127.0.0.1 is "another"
    with running(StubEngine()) as server:
        address = f"{server.url}/#token=server-token"
        with Client(address, policy="all") as client:
            client.step(np.zeros((48, 64, 3), np.uint8), one_object())
    assert encodings == [protocol.JPEG]


def test_what_cannot_be_sent_is_refused_and_the_next_frame_goes_on() -> None:
    frame, mask = np.zeros((48, 64, 3), np.uint8), one_object()
    with (
        running(StubEngine()) as server,
        Client(f"{server.url}/#token=server-token", policy="all") as client,
    ):
        for bad in (frame / 255.0, frame[..., 0], frame[..., :2]):
            with pytest.raises(InputError, match="wanted uint8"):
                client.step(bad, mask)
        for bad in (mask.astype(np.int64), mask.astype(np.float32)):
            with pytest.raises(InputError, match=r"cannot be encoded as \.png"):
                client.step(frame, bad)
        answer = client.step(frame, mask)
        assert answer is not None and answer.frame == 0


def test_a_server_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(ServerError, match=r"http://127\.0\.0\.1:9: unreachable") as refused,
        Client("http://127.0.0.1:9/#token=any"),
    ):
        pass
    assert refused.value.code == "unreachable"
