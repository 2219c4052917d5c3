"""Label images, overlays and videos: round trips, and atomic writes."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from clips import (
    HEIGHT,
    WIDTH,
    cut_at,
    noise,
    read_all,
)
from full_disk import files_up_to, small_disk
from PIL import Image

from vosengine.errors import InputError, OutputError
from vosengine.video import (
    DAVIS_PALETTE,
    VideoWriter,
    overlay,
    prepare_output_folder,
    read_labels,
    write_labels,
)

# Label images


def test_palette() -> None:
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert [tuple(c) for c in DAVIS_PALETTE[:5].tolist()] == first
    assert tuple(DAVIS_PALETTE[20].tolist()) == (0, 64, 128)  # VOC's tv monitor
    assert tuple(DAVIS_PALETTE[255].tolist()) == (224, 224, 192)  # VOC's void
    assert DAVIS_PALETTE.shape == (256, 3) and DAVIS_PALETTE.dtype == np.uint8
    assert len(np.unique(DAVIS_PALETTE, axis=0)) == 256


@pytest.mark.parametrize("top", [1, 3, 255])
def test_labels_round_trip(tmp_path: Path, top: int) -> None:
    labels = np.random.default_rng(1).integers(0, top + 1, (13, 17), dtype=np.uint8)
    path = tmp_path / "a.png"
    write_labels(path, labels, "seconds: 1 µs")
    write_labels(tmp_path / "b.png", labels[:, ::-1])
    with Image.open(path) as image:
        assert image.mode == "P" and image.text == {"Comment": "seconds: 1 µs"}
        assert image.getpalette() == DAVIS_PALETTE.ravel().tolist()
        np.testing.assert_array_equal(np.asarray(image), labels)
    read = read_labels(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png"), labels[:, ::-1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_killed_while_writing_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_labels(path, np.ones((4, 4), np.uint8))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_labels(path, np.zeros((4, 4), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert read_labels(path).all()


def test_labels_that_cannot_be_written(tmp_path: Path) -> None:
    labels = np.zeros((4, 4), np.uint8)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path in ("none/a.png", "file/a.png", "folder.png"):
        with pytest.raises(OutputError, match=path):
            write_labels(tmp_path / path, labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]
    for wrong in (labels.astype(np.int64), labels[None], labels[:0]):
        with pytest.raises(InputError, match=r"wanted uint8 \[H, W\]"):
            write_labels(tmp_path / "a.png", wrong)


def test_grey_labels(tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 0]])
    path = tmp_path / "a.png"
    Image.fromarray(values.astype(bool)).save(path)
    with Image.open(path) as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(read_labels(path), values)
    for dtype, factor in ((np.uint8, 250), (np.uint16, 255)):
        Image.fromarray((values * factor).astype(dtype)).save(path)
        read = read_labels(path)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, values * factor)


def test_labels_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match=r"a\.png: no such file"):
        read_labels(path)
    Image.fromarray(np.full((2, 2), 256, np.uint16)).save(path)
    with pytest.raises(InputError, match="256, wanted object ids 0 to 255"):
        read_labels(path)
    for mode in ("RGB", "RGBA"):
        Image.new(mode, (2, 2)).save(path)
        with pytest.raises(InputError, match=rf"is a {mode} image, wanted an indexed .*write_lab"):
            read_labels(path)
    path.write_text("rubbish")
    with pytest.raises(InputError, match="not a readable image"):
        read_labels(path)
    write_labels(path, noise(1)[0, ..., 0])
    for share in (0.05, 0.5, 0.9):
        with pytest.raises(InputError, match="not a readable image"):
            read_labels(cut_at(path, share))


# Overlays


def test_overlay_blends_and_outlines() -> None:
    frame = np.full((40, 50, 3), 100, np.uint8)
    labels = np.zeros((40, 50), np.uint8)
    labels[10:30, 10:20], labels[10:30, 20:40] = 1, 2
    out = overlay(frame, labels, alpha=0.5)
    assert np.all(frame == 100) and out.dtype == np.uint8
    assert np.all(out[labels == 0] == 100)
    assert tuple(out[20, 14]) == (114, 50, 50) and tuple(out[20, 30]) == (50, 114, 50)
    rims = out[20, [10, 19, 20, 39]].tolist()
    assert rims == [[192, 128, 128], [192, 128, 128], [128, 192, 128], [128, 192, 128]]
    np.testing.assert_array_equal(overlay(frame, np.zeros_like(labels)), frame)
    np.testing.assert_array_equal(overlay(frame[:, ::-1], labels[:, ::-1]), out[:, ::-1])


@pytest.mark.parametrize("ground", [0, 128, 255])
@pytest.mark.parametrize("size", [(480, 854), (HEIGHT, WIDTH), (1, 1)])
def test_caption_is_readable_on_any_ground(ground: int, size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), ground, np.uint8)
    out = overlay(frame, np.zeros(size, np.uint8), caption="RANDOM WEIGHTS")
    if size[0] > 1:
        corner = out[: size[0] // 4]
        assert corner.max() > 200 and corner.min() < 60
    assert np.all(out[size[0] // 2 + 1 :] == ground)


def test_overlay_refuses_what_does_not_fit() -> None:
    frame, labels = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    with pytest.raises(InputError, match="wanted equal sizes"):
        overlay(frame, labels[:3])
    with pytest.raises(InputError, match=r"wanted uint8 RGB \[H, W, 3\]"):
        overlay(frame.astype(np.float32), labels)
    with pytest.raises(InputError, match="alpha is 2"):
        overlay(frame, labels, alpha=2)


# Video writer and output folder


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1)])
def test_writer_round_trip(tmp_path: Path, size: tuple[int, int]) -> None:
    colours = np.array([[200, 40, 90], [20, 180, 60], [240, 240, 240]], np.uint8)
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 30000 / 1001) as writer:
        for colour in colours:
            writer.write(np.broadcast_to(colour, (*size, 3)))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert str(stream.average_rate) == "30000/1001"
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    read = read_all(path)
    assert [f.image.shape for f in read] == [(size[0] + size[0] % 2, size[1] + size[1] % 2, 3)] * 3
    for frame, colour in zip(read, colours, strict=True):
        assert np.abs(frame.image.astype(int) - colour).max() <= 6


def test_writer_survives_an_interrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 25) as writer:
        for frame in noise(3):
            writer.write(frame)
        raise KeyboardInterrupt
    assert len(read_all(path)) == 3
    writer.close()
    with pytest.raises(OutputError, match="is closed or broken"):
        writer.write(noise(1)[0])


def test_writer_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none/a.mp4", "file/a.mp4", "a.avi"):
        with pytest.raises(OutputError, match=name):
            VideoWriter(tmp_path / name, 25)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="fps is"):
            VideoWriter(tmp_path / "a.mp4", fps)
    with VideoWriter(tmp_path / "a.mp4", 25, size=(48, 64)) as writer:
        with pytest.raises(InputError, match=r"frame is \(10, 64\), wanted \(48, 64\)"):
            writer.write(noise(1, height=10)[0])
        with pytest.raises(InputError, match="wanted uint8 RGB"):
            writer.write(noise(1)[0, ..., 0])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]  # nothing written, nothing left


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_video_can_be_played_while_it_is_written(tmp_path: Path) -> None:
    """What a killed process leaves: all but the last half second and what the encoder holds."""
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 25) as writer:
        for frame in noise(90):
            writer.write(frame)
        left = tmp_path / "left.mp4"
        left.write_bytes((tmp_path / "a.part.mp4").read_bytes())
        assert not path.exists()
        assert 40 <= frames_in(left) < 90
    assert frames_in(path) == 90
    assert not (tmp_path / "a.part.mp4").exists()


def test_writer_on_a_full_disk(tmp_path: Path) -> None:
    """Each frame written before that can still be played."""
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, 25)
    full = pytest.raises(OutputError, match=r"a\.mp4: cannot be written \(File too large")
    with files_up_to(100_000), full, writer:
        for frame in noise(90):
            writer.write(frame)
    with pytest.raises(OutputError, match="is closed or broken"):
        writer.write(noise(1)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert 12 <= frames_in(path) < 60


def test_no_room_for_the_second_copy_with_its_index(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 300) as disk:
        path = disk / "a.mp4"
        with (
            pytest.raises(OutputError, match=r"a\.mp4: cannot be written"),
            VideoWriter(path, 25) as writer,
        ):
            for frame in noise(100):
                writer.write(frame)
        assert [p.name for p in disk.iterdir()] == ["a.mp4"]
        assert frames_in(path) == 100


def test_output_folder(tmp_path: Path) -> None:
    folder = prepare_output_folder(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b" and list(folder.iterdir()) == []
    assert prepare_output_folder(folder) == folder
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: is a file, wanted a folder"):
        prepare_output_folder(tmp_path / "file")
    with pytest.raises(OutputError, match=r"file/x: cannot be written \(Not a directory"):
        prepare_output_folder(tmp_path / "file" / "x")


def test_output_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(OutputError, match=f"{tmp_path}: cannot be written .Permission denied"):
        prepare_output_folder(tmp_path)
