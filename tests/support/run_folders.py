"""Folders of frames for tests of `run`, and comparison of folders."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vosengine.commands.run import RunOptions, run
from vosengine.errors import OutputError
from vosengine.video import VideoWriter

FRAMES = 6
SIZE = 24, 32


def make_frames(folder: Path, count: int = FRAMES) -> Path:
    folder.mkdir()
    for index in range(count):
        image = np.full((*SIZE, 3), 30, np.uint8)
        image[4:12, 4 + index : 12 + index] = 220
        Image.fromarray(image).save(folder / f"shot-{index}.png")
    return folder


def make_clip(path: Path) -> Path:
    with VideoWriter(path, 25) as writer:
        for index in range(FRAMES):
            writer.write(np.full((*SIZE, 3), 40 * index, np.uint8))
    return path


def options(source: object, out: Path, **changes: object) -> RunOptions:
    return RunOptions(source=str(source), model="stm", out=out, **changes)  # type: ignore[arg-type]


def everything(folder: Path) -> dict[str, str]:
    """Hash of every file below the folder."""
    hashes = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            content = path.read_bytes() if path.is_file() else b""
            what = os.readlink(path) if path.is_symlink() else ""
            hashes[str(path.relative_to(folder))] = what + hashlib.sha256(content).hexdigest()
    return hashes


def refused(wanted: RunOptions, *paths: Path, below: Path) -> None:
    """Assert that the run raises an error with these paths and changes nothing."""
    before = everything(below)
    with pytest.raises(OutputError) as caught:
        run(wanted)
    assert everything(below) == before
    for path in paths:
        assert str(path) in str(caught.value)


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))
