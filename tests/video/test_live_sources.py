"""Cameras and network streams as sources."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import (
    make_faststart,
    make_video,
    noise,
    read_until_fault,
)

from vosengine.errors import SourceError
from vosengine.video import container, open_source


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve tmp_path over HTTP; returns the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


class FakeCamera:
    """A camera that fails after three frames."""

    def __init__(self, number: int, backend: int) -> None:
        assert backend != cv2.CAP_FFMPEG
        self.number, self.left, self.released = number, 3, False

    def isOpened(self) -> bool:  # noqa: N802 (the name is OpenCV's)
        return self.number == 1

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, np.full((4, 6, 3), (1, 2, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize("number", [1, "1"])
def test_camera(monkeypatch: pytest.MonkeyPatch, number: int | str) -> None:
    cameras: list[FakeCamera] = []

    def connect(index: int, backend: int) -> FakeCamera:
        cameras.append(FakeCamera(index, backend))
        return cameras[-1]

    monkeypatch.setattr(cv2, "VideoCapture", connect)
    backends = [cv2.CAP_FFMPEG, cv2.CAP_V4L2]
    monkeypatch.setattr(cv2.videoio_registry, "getCameraBackends", lambda: backends)
    with open_source(number) as source:
        assert (source.live, source.length, source.fps) == (True, None, 24.0)
    assert cameras[0].released
    frames, message = read_until_fault(number)
    assert [f.name for f in frames] == ["00000", "00001", "00002"]
    times = [f.time_s for f in frames]
    assert times[0] is not None and 0 <= times[0] < 1
    assert all(np.diff(times) >= 1 / 90_000 - 1e-9)  # of their arrival
    assert np.all(frames[0].image == (3, 2, 1))
    assert "camera 1 gave no frame after 3 frames" in message
    assert cameras[1].released
    with pytest.raises(SourceError, match="camera 2 cannot be opened"):
        open_source(2)
    assert cameras[2].released


def test_absent_camera() -> None:
    with pytest.raises(SourceError, match="camera 63 cannot be opened"):
        open_source("63")
    with pytest.raises(SourceError, match="camera -1 cannot be opened"):
        open_source(-1)


def test_video_behind_an_address(tmp_path: Path, server: str) -> None:
    make_faststart(tmp_path / "a.mp4", 12)
    with open_source(f"{server}/a.mp4") as source:
        assert (source.live, source.length, source.fps) == (False, 12, 25.0)
        assert len(list(source)) == 12
    with pytest.raises(SourceError, match=r"missing\.mp4: cannot be opened .*404"):
        open_source(f"{server}/missing.mp4")


@pytest.mark.slow
def test_live_stream(tmp_path: Path, server: str) -> None:
    """A damaged packet ends a file, but a stream continues with the next intact packet."""
    path = make_video(
        tmp_path / "a.mkv",
        noise(40),
        options={"g": "5", "bf": "0"},
        container_options={"live": "1"},
    )
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    data = path.read_bytes()
    path.write_bytes(data.replace(packets[20], bytes(len(packets[20]))))
    frames, _ = read_until_fault(path)
    assert len(frames) <= 20
    with open_source(f"{server}/a.mkv") as source:
        assert (source.live, source.length) == (True, None)
        assert 30 < len(list(source)) < 40


def test_refused_address_hides_the_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for scheme in ("http", "rtsp"):
        with pytest.raises(SourceError, match="Connection refused") as caught:
            open_source(f"{scheme}://me:secret@127.0.0.1:{port}/a.mp4")
        assert "secret" not in str(caught.value)
        assert "check the address" in str(caught.value)


def test_silent_address_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "STREAM_TIMEOUT_S", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(SourceError, match=r"no data within 0\.3 s"):
            open_source(f"http://127.0.0.1:{mute.getsockname()[1]}/a.mp4")
