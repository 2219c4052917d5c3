"""Frame sources: what they yield, and every way in which they can be given rubbish."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from vosengine.errors import SourceError
from vosengine.video import (
    FrameSource,
    SourceFrame,
    container,
    open_source,
)

HEIGHT, WIDTH = 48, 64


def noise(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 RGB [count, height, width, 3]; noise, so that every frame needs many bytes."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def make_video(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    rotation: tuple[int, bool, bool] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        if rotation:
            stream.set_display_rotation(*rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def make_faststart(path: Path, count: int = 30) -> Path:
    return make_video(path, noise(count), container_options={"movflags": "faststart"})


def cut(path: Path, size: int) -> Path:
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(path.read_bytes()[:size])
    return short


def cut_at(path: Path, share: float) -> Path:
    return cut(path, int(path.stat().st_size * share))


def make_images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for value, name in enumerate(names):
        Image.new("RGB", (8, 6), (value, 100, 200)).save(folder / name)
    return folder


def read_all(source: str | Path | int) -> list[SourceFrame]:
    with open_source(source) as opened:
        return list(opened)


def read_until_fault(source: str | Path | int) -> tuple[list[SourceFrame], str]:
    """The frames before the SourceError that has to come, and its message."""
    frames: list[SourceFrame] = []
    with open_source(source) as opened, pytest.raises(SourceError) as caught:
        for frame in opened:
            frames.append(frame)
    return frames, str(caught.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an HTTP server for tmp_path."""

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


# Images


def test_image_folder_in_natural_order(tmp_path: Path) -> None:
    make_images(tmp_path, "f10.png", "f2.png", "F1.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._f2.png").write_text("macOS side file")
    with open_source(str(tmp_path)) as source:
        assert (source.length, source.fps, source.live) == (3, 24.0, False)
        assert isinstance(source, FrameSource) and str(tmp_path) in source.description
        frames = list(source)
    assert [f.name for f in frames] == ["F1", "f2", "f10"]
    assert [f.index for f in frames] == [0, 1, 2]
    assert [tuple(f.image[0, 0]) for f in frames] == [(2, 100, 200), (1, 100, 200), (0, 100, 200)]
    assert all(f.image.flags.c_contiguous and f.image.dtype == np.uint8 for f in frames)
    assert frames[0].image.shape == (6, 8, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.png", "a.bmp", "a.webp", "a.tif", "a.tiff"])
def test_every_image_extension(tmp_path: Path, name: str) -> None:
    (frame,) = read_all(make_images(tmp_path, name))
    assert frame.name == "a"
    assert np.abs(frame.image.astype(int) - [0, 100, 200]).max() < 10


def test_glob_pattern_and_literal_brackets(tmp_path: Path) -> None:
    make_images(tmp_path / "clip[1]", "a1.png", "a2.png", "b1.png")
    assert [f.name for f in read_all(str(tmp_path / "clip*" / "a*.png"))] == ["a1", "a2"]
    assert len(read_all(str(tmp_path / "clip[1]"))) == 3
    assert [f.name for f in read_all(str(tmp_path / "clip[1]" / "b1.png"))] == ["b1"]
    with pytest.raises(SourceError, match=r"pattern .*z\*\.png holds no images"):
        open_source(str(tmp_path / "z*.png"))


def test_sixteen_bit_and_alpha_images(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4), 40000, np.uint16))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((4, 4, 4), (10, 20, 30, 0), np.uint8))
    deep, clear = read_all(tmp_path)
    assert np.all(deep.image == 156) and deep.image.shape == (4, 4, 3)
    assert np.all(clear.image == (30, 20, 10))


def test_bad_image_folders(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"{tmp_path} holds no images.*jpg jpeg png"):
        open_source(str(tmp_path))
    make_images(tmp_path, "a.jpg", "a.png")
    with pytest.raises(SourceError, match=r"a\.jpg and .*a\.png"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_unreadable_image_in_the_middle(tmp_path: Path, damage: str) -> None:
    make_images(tmp_path, "1.jpg", "3.jpg")
    whole = make_images(tmp_path / "other", "2.jpg") / "2.jpg"
    Image.fromarray(noise(1)[0]).save(whole)
    data = {"text": b"rubbish", "empty": b"", "cut": whole.read_bytes()[:1500]}[damage]
    (tmp_path / "2.jpg").write_bytes(data)
    frames, message = read_until_fault(tmp_path)
    assert [f.name for f in frames] == ["1"]
    assert str(tmp_path / "2.jpg") in message


def test_closing_ends_an_iteration(tmp_path: Path) -> None:
    make_images(tmp_path, "1.png", "2.png")
    video = make_video(tmp_path / "a.mp4", noise(5))
    for path in (tmp_path, video):
        source = open_source(path)
        frames = iter(source)
        assert next(frames).index == 0
        source.close()
        source.close()
        assert list(frames) == []


def test_closing_from_another_thread(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", noise(60))
    for _ in range(5):
        source = open_source(path)
        started = threading.Event()

        def read(source: FrameSource = source, started: threading.Event = started) -> None:
            for _ in source:
                started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(5)
        source.close()
        reader.join(5)
        assert not reader.is_alive()


# Video files


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.webm"])
def test_video_round_trip(tmp_path: Path, name: str) -> None:
    grey = np.linspace(20, 230, 30).astype(np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (30, HEIGHT, WIDTH, 3)).copy()
    codec = {"avi": "mpeg4", "webm": "libvpx"}.get(name[2:], "libx264")
    with open_source(make_video(tmp_path / name, frames, codec=codec)) as source:
        assert (source.fps, source.live) == (25.0, False)
        assert source.length == (30 if name in ("a.mp4", "a.avi") else None)
        read = list(source)
        with pytest.raises(SourceError, match="open it again"):
            next(iter(source))
    assert [f.name for f in read] == [f"{i:05d}" for i in range(30)]
    assert all(f.image.shape == (HEIGHT, WIDTH, 3) and f.image.flags.c_contiguous for f in read)
    assert np.abs(np.array([f.image.mean() for f in read]) - grey).max() < 6


def test_abandoned_iteration_closes_the_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", noise(5))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        for frame in open_source(path):
            assert frame.index == 0
            break
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("turn", "corner"),
    [
        ((0, False, False), (0, 0)),
        ((90, False, False), (-1, 0)),  # a quarter turn counter-clockwise: top left -> bottom left
        ((180, False, False), (-1, -1)),
        ((-90, False, False), (0, -1)),
        ((0, True, False), (0, -1)),
        ((90, True, False), (-1, -1)),
    ],
)
def test_rotation_metadata(
    tmp_path: Path, turn: tuple[int, bool, bool], corner: tuple[int, int]
) -> None:
    frames = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    frames[:, :16, :16] = 255
    read = read_all(make_video(tmp_path / "a.mp4", frames, rotation=turn))
    assert len(read) == 2
    image = read[1].image
    upright = turn[0] in (0, 180)
    assert image.shape == ((HEIGHT, WIDTH, 3) if upright else (WIDTH, HEIGHT, 3))
    assert image.flags.c_contiguous
    bright = {(y, x) for y in (0, -1) for x in (0, -1) if image[y, x].mean() > 200}
    assert bright == {corner}


@pytest.mark.parametrize(
    ("b_frames", "share"), [(0, 0.6), (3, 0.5), (3, 0.55), (3, 0.6), (3, 0.65), (3, 0.7)]
)
def test_cut_with_the_index_at_the_front(tmp_path: Path, b_frames: int, share: float) -> None:
    path = make_video(
        tmp_path / "a.mp4",
        noise(30),
        options={"bf": str(b_frames), "b_strategy": "0", "sc_threshold": "0"},
        container_options={"movflags": "faststart"},
    )
    short = cut_at(path, share)
    with av.open(str(path)) as container:
        size = short.stat().st_size
        index = container.streams.video[0].index_entries
        whole = sum(entry.pos + entry.size <= size for entry in index)
    frames, message = read_until_fault(short)
    assert 10 < whole < 25
    # With B-frames, some of the whole ones are shown after the first lost one.
    assert whole - b_frames - 1 < len(frames) <= whole
    assert f"after {len(frames)} of 30 frames" in message
    for before, after in zip(read_all(path), frames, strict=False):
        np.testing.assert_array_equal(before.image, after.image)


def test_cut_between_two_packets(tmp_path: Path) -> None:
    """Here no packet is damaged: only the count tells."""
    path = make_video(
        tmp_path / "a.mp4",
        noise(30),
        options={"bf": "0"},
        container_options={"movflags": "faststart"},
    )
    with av.open(str(path)) as container:
        end = container.streams.video[0].index_entries[29].pos
    frames, message = read_until_fault(cut(path, end))
    assert len(frames) == 29
    assert "after 29 of 30 frames" in message


def test_index_cut_off(tmp_path: Path) -> None:
    path = cut_at(make_video(tmp_path / "a.mp4", noise(30)), 0.6)
    with pytest.raises(SourceError, match=rf"{path.name}: .*Invalid data.*moov"):
        open_source(path)


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = make_faststart(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 3000] = bytes(3000)
    path.write_bytes(data)
    frames, message = read_until_fault(path)
    assert 5 < len(frames) < 20
    assert f"after {len(frames)} of 30 frames" in message


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_other_containers_cut(tmp_path: Path, name: str, codec: str) -> None:
    path = make_video(tmp_path / name, noise(90), codec=codec)
    frames, message = read_until_fault(cut_at(path, 0.5))
    assert 30 < len(frames) < 60
    assert f"after {len(frames)}" in message


def test_edit_list_is_no_truncation(tmp_path: Path) -> None:
    """A stream copied from mid-way hides its first frames; they are not missing."""
    whole = make_faststart(tmp_path / "a.mp4")
    path = tmp_path / "b.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = 10 * 512  # ten frames at 1 / 12800 s
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.dts -= shift
                packet.pts -= shift
                packet.stream = copy
                target.mux(packet)
    with av.open(str(path)) as container:
        hidden = sum(packet.is_discard for packet in container.demux(video=0))
    assert hidden == 10
    assert len(read_all(path)) == 20


def test_variable_frame_size(tmp_path: Path) -> None:
    """The size changes with a new parameter set; each frame comes out as it is."""
    small = make_video(tmp_path / "a.h264", noise(3)).read_bytes()
    large = make_video(tmp_path / "b.h264", noise(3, 96, 128)).read_bytes()
    (tmp_path / "c.h264").write_bytes(small + large)
    shapes = [f.image.shape[:2] for f in read_all(tmp_path / "c.h264")]
    assert shapes == [(HEIGHT, WIDTH)] * 3 + [(96, 128)] * 3


def test_files_that_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nope\.mp4: no such file"):
        open_source(str(tmp_path / "nope.mp4"))
    text = tmp_path / "text.mp4"
    text.write_text("hello")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (text, empty):
        with pytest.raises(SourceError, match=rf"{path.name}: cannot be opened as a video \(Inv"):
            open_source(path)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(SourceError, match=r"a\.wav: holds no video stream"):
        open_source(path)


@pytest.mark.parametrize("flags", ["faststart", "empty_moov+frag_keyframe"])
def test_video_without_frames(tmp_path: Path, flags: str) -> None:
    """A header with nothing behind it."""
    path = make_video(tmp_path / "a.mp4", noise(3), container_options={"movflags": flags})
    data = path.read_bytes()
    end = min(data.index(box) for box in (b"mdat", b"moof") if box in data)
    frames, message = read_until_fault(cut(path, end - 4))
    assert frames == [] and "cut_a.mp4: holds no whole frame" in message


# Cameras and network streams


class FakeCamera:
    """Three frames, then its cable is pulled."""

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
    assert np.all(frames[0].image == (3, 2, 1))
    assert "camera 1 gave no picture after 3 frames" in message
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


def test_live_stream(tmp_path: Path, server: str) -> None:
    """A damaged packet ends a file, but not a stream, which goes on at the next whole one."""
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
