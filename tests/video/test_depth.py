"""Pixels deeper than 8 bits: conversion, facts and errors."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import HEIGHT, WIDTH, make_images, make_video, noise

from vosengine.errors import ConfigError, SourceError
from vosengine.video import SourceFrame, open_source


def scene(count: int = 3) -> np.ndarray:
    """Grey uint8 [count, H, W] from 0 to 255, smooth, with a bright square that moves."""
    ramp = np.linspace(0, 200, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    frames = np.stack([ramp] * count)
    for number, frame in enumerate(frames):
        frame[10:20, 10 + number : 20 + number] = 255
    return frames


def save(folder: Path, frames: np.ndarray, suffix: str = "png") -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{number}.{suffix}"), frame)
    return folder


def read(path: Path, bits: int | None = None) -> tuple[list[SourceFrame], dict[str, object]]:
    with open_source(path, bits=bits) as source:
        frames = list(source)
        depth = source.facts()["depth"]
    return frames, depth or {}


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_data_of_fewer_bits_than_their_container(
    tmp_path: Path, bits: int, explicit: bool, suffix: str
) -> None:
    """12-bit data in 16-bit files look as the same data in 8 bits do."""
    deep = np.rint(scene().astype(float) * (2**bits - 1) / 255).astype(np.uint16)
    frames, depth = read(save(tmp_path / "a", deep, suffix), bits if explicit else None)
    for frame, wanted in zip(frames, scene(), strict=True):
        assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
        np.testing.assert_array_equal(frame.image, np.dstack([wanted] * 3))
    assert depth == {
        "bits": bits,
        "low": 0.0,
        "high": 2.0**bits - 1,
        "chosen_by": "--bits" if explicit else "the first frames",
        "clipped_frames": 0,
    }


def test_colour_keeps_its_channels(tmp_path: Path) -> None:
    colour = noise(2)
    deep = (colour.astype(np.uint16) * 16)[..., ::-1]
    frames, depth = read(save(tmp_path / "a", deep))
    assert depth["bits"] == 12
    for frame, wanted in zip(frames, colour, strict=True):
        assert np.abs(frame.image.astype(int) - wanted).max() <= 1


def test_thermal_stack_is_stretched_once_for_all(tmp_path: Path) -> None:
    """14-bit counts around 7500 that differ by a few hundred: plain scaling leaves 13 levels."""
    counts = 7300 + scene().astype(np.uint16)
    counts[2] += 40  # it grows warmer; the scale stays
    frames, depth = read(save(tmp_path / "a", counts))
    assert depth["bits"] is None and depth["chosen_by"] == "the first frames"
    levels = [np.ptp(frame.image) for frame in frames]
    assert min(levels) > 100
    step = frames[2].image.astype(int) - frames[0].image
    still = np.ones((HEIGHT, WIDTH), bool)
    still[10:20, 10:22] = False
    assert np.ptp(step[still]) <= 1 and step[still].mean() > 15
    plain, _ = read(tmp_path / "a", bits=14)
    assert np.ptp(plain[0].image) < 5


def test_dead_pixels_do_not_choose_the_scale(tmp_path: Path) -> None:
    counts = 7300 + scene().astype(np.uint16)
    counts[:, 0, 0], counts[:, 1, 1] = 65535, 0
    frames, depth = read(save(tmp_path / "a", counts))
    assert np.ptp(frames[0].image[5:, 5:]) > 100
    assert depth["clipped_frames"] == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
def test_degrees(tmp_path: Path, dtype: type[np.generic]) -> None:
    degrees = (scene().astype(float) / 4 - 20).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        degrees[1, 3, 3] = np.nan
    frames, depth = read(save(tmp_path / "a", degrees, "tif"))
    assert depth["bits"] is None
    assert all(np.ptp(frame.image) > 100 for frame in frames)
    order = np.argsort(scene()[0, 30])
    assert np.all(np.diff(frames[0].image[30, order, 0].astype(int)) >= 0)


def test_floats_from_0_to_1(tmp_path: Path) -> None:
    frames, depth = read(save(tmp_path / "a", (scene() / 255).astype(np.float32), "tiff"))
    assert (depth["low"], depth["high"]) == (0.0, 1.0)
    np.testing.assert_array_equal(frames[0].image[..., 0], scene()[0])


def test_more_than_the_first_frames_showed(tmp_path: Path) -> None:
    deep = scene(12).astype(np.uint16) * 4
    deep[10] *= 4
    folder = save(tmp_path / "a", deep)
    with pytest.raises(SourceError) as caught:
        read(folder)
    assert "10.png: holds values up to 4080, the first frames showed 10 bits" in str(caught.value)
    assert "give --bits 12" in str(caught.value)
    frames, _ = read(folder, bits=12)
    assert len(frames) == 12
    with pytest.raises(SourceError, match=r"up to 1020, --bits says 9 bits .*give --bits 10"):
        read(folder, bits=9)


def test_a_fade_from_black_waits_for_the_picture(tmp_path: Path) -> None:
    deep = scene(14).astype(np.uint16) * 16
    deep[:10] = 0
    frames, depth = read(save(tmp_path / "a", deep))
    assert depth["bits"] == 12 and len(frames) == 14
    assert frames[0].image.max() == 0 and frames[13].image.max() >= 254


def test_frames_before_a_damaged_one_are_answered(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", scene().astype(np.uint16) * 16)
    (folder / "2.png").write_bytes(b"rubbish")
    seen = []
    with open_source(folder) as source, pytest.raises(SourceError, match=r"2\.png"):
        for frame in source:
            seen.append(frame.name)
    assert seen == ["0", "1"]


def test_bits_are_refused_where_they_say_nothing(tmp_path: Path) -> None:
    make_images(tmp_path / "eight", "1.png")
    with pytest.raises(SourceError, match=r"1\.png has 8 bits a value, not 12; leave --bits out"):
        read(tmp_path / "eight", bits=12)
    assert read(tmp_path / "eight", bits=8)[1] == {}
    video = make_video(tmp_path / "a.mp4", noise(2))
    with pytest.raises(SourceError, match="has 8 bits a value, not 12"):
        read(video, bits=12)
    floats = save(tmp_path / "f", scene().astype(np.float32), "tif")
    with pytest.raises(SourceError, match="float32, which has no count of bits"):
        read(floats, bits=12)
    for bits in (0, 7, 17):
        with pytest.raises(ConfigError, match=rf"bits: is {bits}, wanted 8 to 16"):
            open_source(tmp_path / "eight", bits=bits)


@pytest.mark.parametrize("pixels", ["gray16le", "rgb48le", "gbrp16le"])
def test_deep_video(tmp_path: Path, pixels: str) -> None:
    """An infrared recording: 12 bits in a lossless video of 16."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        for frame in scene():
            deep = av.VideoFrame.from_ndarray(frame.astype(np.uint16) * 16, format="gray16le")
            container.mux(stream.encode(deep.reformat(format=pixels)))
        container.mux(stream.encode(None))
    frames, depth = read(path)
    assert depth["bits"] == 12
    assert [f.time_s for f in frames] == [0.0, 0.04, 0.08]
    for frame, wanted in zip(frames, scene(), strict=True):
        assert np.abs(frame.image.astype(int) - wanted[..., None]).max() <= 1
