"""Image files with several images, and the order of files by their names."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import HEIGHT, WIDTH, make_images, noise, read_all, read_until_fault
from PIL import Image

from vosengine.errors import SourceError
from vosengine.video import open_source, pages
from vosengine.video.names import in_order

COUNT = 10
LASTING_MS = [30] * 5 + [200] * 5
SHOWN_S = [0.0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.35, 0.55, 0.75, 0.95]


def save(path: Path, frames: np.ndarray, **settings: object) -> Path:
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, **settings)
    return path


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_animations_give_every_frame_and_its_time(tmp_path: Path, name: str) -> None:
    shades = np.arange(5, 255, 25, dtype=np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (COUNT, HEIGHT, WIDTH, 3)).copy()
    frames[:, :8, :8] = 255  # browsers get one image that lasts longer for two that are alike
    settings = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path / name, frames, duration=LASTING_MS, **settings)
    read = read_all(path)
    assert [f.name for f in read] == [f"{i:05d}" for i in range(COUNT)]
    np.testing.assert_allclose([f.time_s for f in read], SHOWN_S, atol=1e-4)
    assert np.abs(np.stack([f.image for f in read]).astype(int) - frames).max() <= 2
    if name != "a.gif":
        with open_source(path) as source:
            assert (source.length, source.names, source.live) == (COUNT, None, False)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg"])
def test_tiff_pages(tmp_path: Path, compression: str) -> None:
    frames = noise(COUNT)
    path = save(tmp_path / "a.tif", frames, compression=compression)
    read = read_all(path)
    assert [f.name for f in read] == [f"{i:05d}" for i in range(COUNT)]
    assert [f.time_s for f in read] == [None] * COUNT
    images = np.stack([f.image for f in read])
    if compression != "jpeg":
        np.testing.assert_array_equal(images, frames)
    else:
        ok, expected = cv2.imreadmulti(str(path), flags=cv2.IMREAD_COLOR)
        assert ok
        np.testing.assert_array_equal(images, np.stack(expected)[..., ::-1])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("large", [False, True])
def test_tiff_of_either_byte_order_and_size(tmp_path: Path, order: str, large: bool) -> None:
    """ImageJ writes the most significant byte first; BigTIFF has 64-bit offsets."""
    pages_ = (noise(3)[..., 0].astype(np.uint16) * 16).astype(f"{order}u2")
    offset, count, entry = ("Q", "Q", "HHQQ") if large else ("I", "H", "HHII")
    at = 16 if large else 8
    head = b"II" if order == "<" else b"MM"
    data = head + struct.pack(
        order + ("HHHQ" if large else "HI"), *(43, 8, 0, at) if large else (42, at)
    )
    for number, page in enumerate(pages_):
        tags = {256: WIDTH, 257: HEIGHT, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 278: HEIGHT}
        tags[279] = page.nbytes
        length = struct.calcsize(order + count + entry * len(tags) + offset)
        tags[273] = at + length
        after = at + length + page.nbytes if number < 2 else 0
        data += struct.pack(order + count, len(tags))
        for tag, value in tags.items():
            data += struct.pack(order + entry, tag, 16 if large else 4, 1, value)
        data += struct.pack(order + offset, after) + page.tobytes()
        at = after
    (tmp_path / "a.tif").write_bytes(data)
    read = read_all(tmp_path / "a.tif")
    assert len(read) == 3
    for frame, wanted in zip(read, noise(3)[..., 0], strict=True):
        assert np.abs(frame.image[..., 0].astype(int) - wanted).max() <= 1


def test_tiff_of_more_than_opencv_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "OPENCV_BYTES", 1000)
    colour = noise(3)
    read = read_all(save(tmp_path / "a.tif", colour))
    np.testing.assert_array_equal(np.stack([f.image for f in read]), colour)
    deep = (colour[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    read = read_all(save(tmp_path / "b.tif", deep))
    np.testing.assert_array_equal(np.stack([f.image[..., 1] for f in read]), colour[..., 0])


@pytest.mark.parametrize("timing", ["finterval=0.04", "fps=25.0"])
def test_tiff_by_imagej_has_times(tmp_path: Path, timing: str) -> None:
    text = f"ImageJ=1.54f\nimages=3\nframes=3\n{timing}\nloop=false\n"
    path = save(tmp_path / "a.tif", noise(3), tiffinfo={270: text})
    np.testing.assert_allclose([f.time_s for f in read_all(path)], [0, 0.04, 0.08], atol=1e-6)
    for nothing in ("finterval=0", "fps=0.0", "fps=1.2.3", "finterval=NaN"):
        path = save(tmp_path / "b.tif", noise(3), tiffinfo={270: text.replace(timing, nothing)})
        assert [f.time_s for f in read_all(path)] == [None] * 3


def test_smaller_versions_in_a_tiff_are_no_frames(tmp_path: Path) -> None:
    """Scanners and maps keep thumbnails as further pages, marked as such."""
    whole = Image.fromarray(noise(1)[0])
    thumbnail = whole.resize((16, 12))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    whole.save(tmp_path / "a.tif", save_all=True, append_images=[thumbnail])
    (frame,) = read_all(tmp_path / "a.tif")
    assert (frame.name, frame.image.shape) == ("a", (HEIGHT, WIDTH, 3))


def test_png_whose_first_image_stands_apart(tmp_path: Path) -> None:
    frames = noise(4)
    path = save(tmp_path / "a.png", frames, duration=40, default_image=True)
    read = read_all(path)
    np.testing.assert_array_equal(np.stack([f.image for f in read]), frames[1:])


def test_several_files_of_several_images(tmp_path: Path) -> None:
    for name in ("b.webp", "a.png"):
        save(tmp_path / name, noise(2), duration=[30, 50])
    read = read_all(tmp_path)
    assert [f.name for f in read] == ["a_00000", "a_00001", "b_00000", "b_00001"]
    np.testing.assert_allclose([f.time_s for f in read], [0, 0.03, 0.08, 0.11], atol=1e-4)
    make_images(tmp_path, "c.png")
    assert [f.time_s for f in read_all(tmp_path)] == [None] * 5
    make_images(tmp_path, "a_00001.png")
    with pytest.raises(SourceError, match=r"a\.png and .*a_00001\.png would both be named"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png"])
def test_cut_in_the_middle(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / name, noise(COUNT), duration=40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames, message = read_until_fault(path)
    assert name in message and "repair" in message
    assert len(frames) <= 6
    for frame, whole in zip(frames, noise(COUNT), strict=False):
        if name != "a.webp":
            np.testing.assert_array_equal(frame.image, whole)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "names",
    [
        "0.png 0.25.png 0.5.png 0.75.png 1.png 10.png",
        "t0.05.png t0.1.png t0.5.png t1.0.png t10.0.png",
        "9.50.png 10.00.png 10.25.png",
        "shot1.8.png shot1.9.png shot1.10.png shot2.1.png",
        "shot1.0009.png shot1.0010.png shot2.0001.png",
        "frame.9.png frame.10.png",
        "1305031102.175304.png 1305031102.211214.png 1305031103.043227.png",
        "f1.jpg f2.png f10.jpg",
        "v1.9.1.png v1.10.1.png",
    ],
)
def test_order_by_numbers(tmp_path: Path, names: str) -> None:
    wanted = names.split()
    for shuffled in (wanted[::-1], sorted(wanted), wanted[1::2] + wanted[::2]):
        assert [p.name for p in in_order(tmp_path / name for name in shuffled)] == wanted


def test_decimal_names_are_kept(tmp_path: Path) -> None:
    make_images(tmp_path, "0.png", "0.25.png", "0.5.png")
    read = read_all(tmp_path)
    assert [f.name for f in read] == ["0", "0.25", "0.5"]
    assert [int(f.image[0, 0, 0]) for f in read] == [0, 1, 2]
    assert re.fullmatch(r"folder .*", open_source(tmp_path).description)
