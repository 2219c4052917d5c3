"""Small videos and images for the tests of sources and writers, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vosengine.errors import SourceError
from vosengine.video import SourceFrame, open_source

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
    """Return the frames before the expected SourceError, and its message."""
    frames: list[SourceFrame] = []
    with open_source(source) as opened, pytest.raises(SourceError) as caught:
        for frame in opened:
            frames.append(frame)
    return frames, str(caught.value)
