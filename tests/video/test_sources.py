"""Files as sources: frames, and errors of invalid and damaged files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import (
    HEIGHT,
    WIDTH,
    cut,
    cut_at,
    make_faststart,
    make_images,
    make_video,
    noise,
    read_all,
    read_until_fault,
)
from PIL import Image

from vosengine.errors import SourceError
from vosengine.video import FrameSource, open_source

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


def test_a_folder_whose_name_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 alone is a camera."""
    make_images(tmp_path / "0", "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    assert [f.name for f in read_all("./0")] == ["a", "b"]
    with pytest.raises(SourceError, match="camera 0"):
        open_source("0")


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
@pytest.mark.slow
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
@pytest.mark.slow
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
    """No packet is damaged; only the frame count shows the loss."""
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
    """A stream cut without re-encoding hides its first frames, which are not missing."""
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
    """A header without data."""
    path = make_video(tmp_path / "a.mp4", noise(3), container_options={"movflags": flags})
    data = path.read_bytes()
    end = min(data.index(box) for box in (b"mdat", b"moof") if box in data)
    frames, message = read_until_fault(cut(path, end - 4))
    assert frames == [] and "cut_a.mp4: holds no whole frame" in message


@pytest.mark.parametrize(
    ("name", "white"),
    [*((f"a.{kind}", 255) for kind in ("jpg", "png", "tif", "webp")), ("a.png", 65535)],
)
def test_exif_orientation(tmp_path: Path, name: str, white: int) -> None:
    """Orientation 6: the stored left side is the top of the picture."""
    stored = np.zeros((HEIGHT, WIDTH), np.uint16 if white > 255 else np.uint8)
    stored[:, :16] = white
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / name, exif=exif)
    (frame,) = read_all(tmp_path / name)
    assert frame.image.shape == (WIDTH, HEIGHT, 3)
    assert frame.image[:14].min() > 200 and frame.image[18:].max() < 50
