"""Requests refused before any work: other hosts, other origins, bombs, floods."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress

import cv2
import numpy as np
import pytest
from serving import TOKEN, Line, Running, bearer, one_object, running, until
from stub_engine import StubEngine
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vosengine.errors import InputError
from vosengine.server import connection, images, protocol


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(
        StubEngine(), allow_hosts=("vos.example",), allow_origins=("https://vos.example",)
    ) as running_server:
        yield running_server


def closed_with(line: Line) -> int | None:
    """The server's close code; None if the connection breaks before it is read."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            line.hear()
    return None if closed.value.rcvd is None else closed.value.rcvd.code


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "localhost@evil", "",
             "10.0.0.1", "127.0.0.1:x", "[::1", "127.0.0.1/../", "LOCALHOST.evil"],
)  # fmt: skip
def test_a_foreign_host_is_refused(server: Running, host: str) -> None:
    answer = server.http.get("/healthz", headers={"Host": host})
    assert answer.status_code in (400, 403)
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "host"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8", "vos.example"]
)
def test_its_own_names_are_taken(server: Running, host: str) -> None:
    assert server.http.get("/healthz", headers={"Host": host}).status_code == 200


def test_a_server_for_all_addresses_takes_each_but_no_foreign_name() -> None:
    with running(StubEngine(), host="0.0.0.0") as server:
        hosts = ["10.0.0.1:8000", "[fe80::1]", "localhost", "evil.example", "10.0.0.1.evil.example"]
        taken = [server.http.get("/healthz", headers={"Host": host}).status_code for host in hosts]
    assert taken == [200, 200, 200, 403, 403]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:1", "file://",
               "http://vos.example", "https://vos.example.evil"],
)  # fmt: skip
def test_a_foreign_origin_is_refused(server: Running, origin: str) -> None:
    answer = server.http.post("/v1/sessions", json={}, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin")
    session = server.open()
    headers = {"additional_headers": {"Origin": origin}}
    with (
        pytest.raises(InvalidStatus) as refused,
        server.socket(session["id"], session["token"], **headers),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_its_own_origin_is_taken(server: Running) -> None:
    for origin in (server.url, "https://vos.example"):
        answer = server.http.post("/v1/sessions", json={}, headers={"Origin": origin})
        assert answer.status_code == 201
        with server.connect(answer.json(), additional_headers={"Origin": origin}):
            pass


def test_a_websocket_wants_its_token_and_its_protocol(server: Running) -> None:
    session, other = server.open(), server.open()
    for name, token, code in (
        (session["id"], "wrong", 4401),
        (session["id"], "", 4401),
        (session["id"], other["token"], 4404),
        ("0" * 32, TOKEN, 4404),
        ("0" * 32, "wrong", 4401),
    ):
        with server.socket(name, token) as line, pytest.raises(ConnectionClosed) as closed:
            line.recv(5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == code
    with (
        server.socket(session["id"], session["token"], subprotocols=None) as line,
        pytest.raises(ConnectionClosed) as closed,
    ):
        line.recv(5)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4400
    offered = [protocol.SUBPROTOCOL]  # the token in a header; the server's is good as well
    for token in (session["token"], TOKEN):
        with server.connect(session, subprotocols=offered, additional_headers=bearer(token)) as it:
            assert it.socket.subprotocol == protocol.SUBPROTOCOL


def test_an_oversize_message_ends_its_connection_alone(server: Running) -> None:
    session, other = server.open(), server.open()
    with server.connect(session) as line, server.connect(other) as neighbour:
        with suppress(ConnectionClosed):  # it may come while this is still being sent
            line.socket.send(bytes((4 << 20) + 1))
        assert closed_with(line) in (1009, None)  # it is still sending when the server closes
        neighbour.frame(0, 0, one_object())
        assert neighbour.hear()["frame"] == 0
    with server.connect(session) as line:
        line.frame(0, 0, one_object())
        assert line.hear()["frame"] == 0


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose header says another size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", struct.pack(">I", 13), head]
    parts += [struct.pack(">I", zlib.crc32(head)), struct.pack(">I", 96), b"IDAT", bytes(100)]
    return b"".join(parts)


def jpeg(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".jpg", image)[1].tobytes())


def bad_frames() -> dict[str, tuple[int, bytes]]:
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    sized = bytearray(whole)
    place = sized.index(b"\xff\xc0") + 5
    sized[place : place + 4] = b"\xff\xff\xff\xff"
    raw = protocol.SIZE.pack(64, 48)
    return {
        "a PNG that claims 60000x60000": (protocol.PNG, png_that_claims(60000, 60000)),
        "a JPEG that claims 65535x65535": (protocol.JPEG, bytes(sized)),
        "a PNG of nothing": (protocol.PNG, png_that_claims(0, 64)),
        "a truncated JPEG": (protocol.JPEG, whole[: len(whole) // 2]),
        "half a header": (protocol.JPEG, whole[:100]),
        "a JPEG of two bytes": (protocol.JPEG, whole[:2]),
        "a PNG called JPEG": (protocol.JPEG, png_that_claims(64, 64)),
        "a JPEG called PNG": (protocol.PNG, whole),
        "raw, cut short": (protocol.RAW, raw + bytes(64 * 48 * 3 - 1)),
        "raw, too long": (protocol.RAW, raw + bytes(64 * 48 * 3 + 1)),
        "raw, of a billion": (protocol.RAW, protocol.SIZE.pack(1 << 31, 1 << 31)),
        "raw, without a size": (protocol.RAW, b"1234567"),
        "of no known encoding": (9, whole),
        "too small": (protocol.RAW, protocol.SIZE.pack(8, 8) + bytes(192)),
    }


@pytest.mark.parametrize("name", [name for name in bad_frames() if name != "too small"])
def test_a_bad_image_is_refused_before_it_takes_memory(name: str) -> None:
    encoding, data = bad_frames()[name]
    start = time.perf_counter()
    with pytest.raises(InputError):
        images.decode_frame(data, encoding, 3840 * 2160)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", [name for name in bad_frames() if "claims" in name])
def test_a_size_is_refused_by_the_header_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("was decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    with pytest.raises(InputError, match=r"frame: is too large .*pixels"):
        images.decode_frame(*reversed(bad_frames()[name]), 3840 * 2160)


@pytest.mark.parametrize(
    "mask",
    [
        png_that_claims(60000, 60000), png_that_claims(64, 48)[:40], jpeg(one_object()), b"",
        protocol.image_bytes(np.zeros((48, 64, 3), np.uint8), ".png"),
        protocol.image_bytes(np.zeros((47, 64), np.uint8), ".png"),
        cv2.imencode(".png", np.zeros((48, 64), np.uint16))[1].tobytes(),
        png_that_claims(64, 48),
    ],
)  # fmt: skip
def test_a_bad_mask_is_refused(mask: bytes) -> None:
    with pytest.raises(InputError, match=r"mask|image"):
        images.decode_mask(mask, (48, 64))


def test_bad_images_leave_the_stream_as_it_was(server: Running) -> None:
    with server.connect(server.open()) as line:
        line.frame(0, 0, one_object())
        line.hear()
        frames = [image for name, image in bad_frames().items() if name != "too small"]
        for number, (encoding, data) in enumerate(frames, 1):
            line.socket.send(protocol.pack(protocol.FRAME, encoding, number, data))
            error = line.hear()
            assert (error["code"], error["frame"]) == ("bad_frame", number)
        line.frame(1 + len(frames), 3)
        assert line.hear()["labels"][0, :2].tolist() == [1, 3]


def test_a_flood_of_sessions_is_refused() -> None:
    limits = {"max_sessions": 3, "parked_sessions": 0, "sessions_per_token": 2}
    with running(StubEngine(), tokens=(TOKEN, "b"), **limits) as server:
        mine = [server.open() for _ in range(2)]
        answers = [server.http.post("/v1/sessions", json={}) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {429}
        assert answers[0].headers["retry-after"] == "5"
        assert "2" in answers[0].json()["error"]["message"]
        b = bearer("b")
        assert server.http.post("/v1/sessions", json={}, headers=b).status_code == 201
        assert server.http.post("/v1/sessions", json={}, headers=b).status_code == 429
        assert 'rejections_total{reason="sessions"} 21' in server.http.get("/metrics").text
        with server.connect(mine[0]) as line:
            line.frame(0, 0, one_object())
            assert line.hear()["frame"] == 0
        server.http.delete(f"/v1/sessions/{mine[1]['id']}")
        server.open()


def test_a_client_that_does_not_read_is_cut_off(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other sessions are served, and what is kept for this one is bounded; it may reconnect."""
    monkeypatch.setattr(connection, "MOST_UNSENT", 8)
    session, other = server.open(policy="all", reply="png"), server.open()
    rng = np.random.default_rng(0)
    with server.connect(session) as line, server.connect(other) as neighbour:
        noise = rng.integers(1, 4, (1000, 1000), np.uint8)
        line.image(0, np.zeros((1000, 1000, 3), np.uint8), noise)
        line.hear()
        line.socket.recv_bufsize = 1
        again = protocol.pack(protocol.FRAME, protocol.RAW, 0, b"")
        with suppress(ConnectionClosed, TimeoutError, OSError):
            line.socket.socket.settimeout(5)
            for _ in range(5000):  # repeats, each with an answer of 300 kB that nobody reads
                line.socket.send(again)
        neighbour.frame(0, 0, one_object())
        assert neighbour.hear()["frame"] == 0
    until(lambda: server.http.get(f"/v1/sessions/{session['id']}").json()["state"] == "idle")
    with server.connect(session) as line:
        assert line.hello["next_frame"] == 1


def test_a_socket_that_goes_silent_is_no_burden() -> None:
    """Half-open connection: the client is gone without closing it."""
    with running(StubEngine(), ping_timeout=0.3) as server:
        session = server.open()
        host, port = server.url[7:].split(":")
        with socket.create_connection((host, int(port))) as bare:
            offered = f"{protocol.SUBPROTOCOL}, {protocol.TOKEN_SUBPROTOCOL}{session['token']}"
            request = (
                f"GET /v1/sessions/{session['id']}/stream HTTP/1.1\r\nHost: {host}:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                f"Sec-WebSocket-Protocol: {offered}\r\n\r\n"
            )
            bare.sendall(request.encode())
            path = f"/v1/sessions/{session['id']}"
            until(lambda: server.http.get(path).json()["state"] == "live")
            with server.connect(session) as line:  # and a newer one takes over at once
                line.frame(0, 0, one_object())
                assert line.hear()["frame"] == 0
            until(lambda: server.http.get(path).json()["state"] == "idle")
