"""`vosengine run` on a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from full_disk import files_up_to, small_disk
from PIL import Image
from run_folders import FRAMES, SIZE, frames_in, make_frames, options
from stub_stream import stub_stream

from vosengine.commands import run as command
from vosengine.commands.record import Journal
from vosengine.commands.run import run
from vosengine.errors import OutputError
from vosengine.video import read_labels


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "make_stream", stub_stream)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return make_frames(tmp_path / "frames")


@pytest.mark.parametrize("name", ["shot-3.png", "state.safetensors", "summary.json"])
def test_no_room_for_one_file(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The error names the file, other files stay readable; with free space the run resumes."""
    out = tmp_path / "o"
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=f"{name}: cannot be written .No space left on"):
            run(options(frames, out, checkpoint=4))
    done = {"shot-3.png": 3, "state.safetensors": 4, "summary.json": FRAMES}[name]
    assert len(list(out.glob("*.png"))) == done
    assert all(read_labels(path).shape == SIZE for path in out.glob("*.png"))
    assert frames_in(out / "overlay.mp4") == done
    if name != "summary.json":
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["complete"], summary["frame_count"]) == (False, done)
        assert name in summary["fault"]
    assert run(options(frames, out, resume=True))["frame_count"] == FRAMES
    assert frames_in(out / "overlay.mp4") == FRAMES


def test_no_room_for_the_journal(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    with monkeypatch.context() as patch:

        def full(self: Journal, *_: object) -> None:
            if len(list(out.glob("*.png"))) == 2:
                raise OutputError(f"{self.path}: cannot be written (No space left on device)")

        patch.setattr(Journal, "frame", full)
        with pytest.raises(OutputError, match=r"journal\.jsonl: cannot be written"):
            run(options(frames, out))
    assert run(options(frames, out, resume=True))["complete"]


def noisy(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


@pytest.mark.slow
def test_no_room_for_the_overlay(tmp_path: Path) -> None:
    frames, out = noisy(tmp_path / "noise", 90), tmp_path / "o"
    with files_up_to(40_000), pytest.raises(OutputError, match=r"overlay\.mp4: cannot be written"):
        run(options(frames, out))
    assert 10 <= frames_in(out / "overlay.mp4") < 90
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["complete"] and "overlay.mp4" in summary["fault"]
    assert run(options(frames, out, resume=True))["complete"]
    assert frames_in(out / "overlay.mp4") == 90


@pytest.mark.parametrize("kib", [60, 100, 200])
def test_a_disk_that_fills_up(tmp_path: Path, kib: int) -> None:
    """The error names the file that did not fit; all others are readable."""
    frames = noisy(tmp_path / "noise", 60)
    with small_disk(tmp_path / "disk", kib) as disk:
        out = disk / "o"
        with pytest.raises(OutputError, match=r"cannot be written|need at least"):
            run(options(frames, out))
        if out.exists():
            assert all(read_labels(path).shape == SIZE for path in out.glob("*.png"))
            if (out / "overlay.mp4").exists():
                assert frames_in(out / "overlay.mp4") > 0
            assert {"summary.json", "journal.jsonl"} & set(os.listdir(out))
