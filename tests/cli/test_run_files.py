"""`vosengine run` never deletes or overwrites files of the user."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_folders import FRAMES, SIZE, everything, make_clip, make_frames, options, refused
from stub_stream import stub_stream

from vosengine.commands import run as command
from vosengine.commands.run import RunOptions, run
from vosengine.errors import ConfigError, InputError, OutputError, SourceError, VosError
from vosengine.video import write_labels


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "make_stream", stub_stream)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return make_frames(tmp_path / "frames")


# An output is never an input


def test_the_folder_of_the_frames_is_no_output(frames: Path, tmp_path: Path) -> None:
    refused(options(frames, frames), frames, below=tmp_path)
    refused(options(f"{frames}/*.png", frames), frames, below=tmp_path)
    around = frames.parent / "x" / ".." / frames.name
    (frames.parent / "x").mkdir()
    refused(options(frames, around), frames, around, below=tmp_path)
    link = tmp_path / "link"
    link.symlink_to(frames)
    refused(options(frames, link), frames, link, below=tmp_path)
    refused(options(link, frames), frames, link, below=tmp_path)
    single = frames / "shot-2.png"
    refused(options(single, frames), single, below=tmp_path)
    assert run(options(frames, frames / "masks"))["complete"]  # beneath them is no harm
    assert run(options(frames, frames / "masks"))["complete"]


def test_the_masks_are_no_output(frames: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    write_labels(masks / "shot-0.png", np.ones(SIZE, np.uint8))
    refused(options(frames, masks, mask=masks), masks, below=tmp_path)
    refused(options(frames, masks, mask=masks / "shot-0.png"), masks / "shot-0.png", below=tmp_path)


def test_a_mask_of_the_run_before_is_an_input_too(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    run(options(frames, out))
    refused(options(frames, out, mask=out / "shot-0.png"), out / "shot-0.png", below=tmp_path)


def test_a_video_in_the_output_folder(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    for name in ("overlay.mp4", "overlay.part.mp4"):
        source = make_clip(out / name)
        refused(options(source, out), source, below=tmp_path)
        source.unlink()
    hidden = make_clip(out / "mine.mp4").rename(out / ".00001.png.part")  # a frame's scratch name
    refused(options(hidden, out), hidden, below=tmp_path)
    hidden.unlink()
    source = make_clip(out / "mine.mp4")
    before = source.read_bytes()
    for _ in range(2):
        assert run(options(source, out))["frame_count"] == FRAMES
    assert source.read_bytes() == before


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_files_by_another_name(
    frames: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    """A frame that is, through a link, an output file of the run."""
    out = tmp_path / "o"
    out.mkdir()
    link(frames / "shot-3.png", out / "shot-3.png")
    refused(options(frames, out), out / "shot-3.png", below=tmp_path)
    (out / "shot-3.png").unlink()
    mask = tmp_path / "mask.png"
    write_labels(mask, np.ones(SIZE, np.uint8))
    link(mask, out / "summary.json")
    refused(options(frames, out, mask=mask), out / "summary.json", below=tmp_path)


def test_weights_proposals_and_exports(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    weights, listed = out / "state.safetensors", out / "overlay.mp4"
    weights.write_bytes(b"weights")
    refused(options(frames, out, weights=str(weights)), weights, below=tmp_path)
    weights.unlink()
    listed.write_text("proposals")
    refused(options(frames, out, proposals=f"file:{listed}"), listed, below=tmp_path)
    listed.unlink()
    (out / "model.json").write_text("an export")
    refused(options(frames, out, export=out), out, below=tmp_path)


# A run replaces what an earlier run wrote, unchanged, and nothing else


def test_files_of_others_are_not_replaced(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    for name in ("shot-2.png", "overlay.mp4", "state.safetensors", "overlay.part.mp4"):
        (out / name).write_text("mine")
        refused(options(frames, out), out / name, below=tmp_path)
        (out / name).unlink()
    (out / "shot-4.png").mkdir()
    refused(options(frames, out), out / "shot-4.png", below=tmp_path)
    (out / "shot-4.png").rmdir()
    (out / "00003.png").write_text("mine")
    refused(options(make_clip(tmp_path / "c.mp4"), out), out / "00003.png", below=tmp_path)
    assert run(options(frames, out))["complete"]  # of which none has that name
    assert (out / "00003.png").read_text() == "mine"


def test_a_mask_that_was_changed_since_is_the_callers(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    run(options(frames, out))
    write_labels(out / "shot-4.png", np.full(SIZE, 7, np.uint8))
    refused(options(frames, out), out / "shot-4.png", below=tmp_path)
    other = make_frames(tmp_path / "less", 3)
    summary = run(options(other, out))
    left = sorted(p.name for p in out.glob("*.png"))
    assert left == ["shot-0.png", "shot-1.png", "shot-2.png", "shot-4.png"]
    assert "shot-4.png" not in summary["files"]
    (out / "mine.txt").write_text("mine")
    refused(options(frames, out), out / "shot-4.png", below=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "{}",
        '{"frames": null, "per_frame_ms": null, "complete": true}',
        '{"frames": ["../frames/shot-0"], "per_frame_ms": [1], "complete": true}',
        '{"frames": [], "per_frame_ms": [], "complete": true, "files": {"../x.png": 1}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_summary_of_something_else(frames: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "o"
    out.mkdir()
    for name in ("summary.json", "journal.jsonl"):
        (out / name).write_bytes(text.encode("latin-1") + b"\n")
        refused(options(frames, out), out / name, below=tmp_path)
        refused(options(frames, out, resume=True), out / name, below=tmp_path)
        (out / name).unlink()


# What can be known is checked before anything goes


def test_what_can_be_known_is_checked_first(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    run(options(frames, out))
    masks = {
        "small": np.ones((5, 5), np.uint8),
        "zero": np.zeros(SIZE, np.uint8),
        "soft": np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE).clip(0, 254),
    }
    for name, mask in masks.items():
        write_labels(tmp_path / f"{name}.png", mask.astype(np.uint8))
    late = tmp_path / "late"
    late.mkdir()
    write_labels(late / "shot-0.png", np.ones(SIZE, np.uint8))
    write_labels(late / "shot-5.png", np.ones((5, 5), np.uint8))
    other = tmp_path / "damaged"
    shutil.copytree(frames, other)
    (other / "shot-0.png").write_bytes(b"no image")
    file = tmp_path / "file"
    file.write_text("x")
    long = make_frames(tmp_path / "long")
    (long / "shot-5.png").rename(long / f"{'n' * 250}.png")
    cases: list[tuple[RunOptions, type[VosError], str]] = [
        (options(frames, out, fps=-1), ConfigError, "fps: wanted a number above 0, given -1"),
        (options(frames, out, fps=0), ConfigError, "fps: wanted a number above 0, given 0"),
        (options(frames, out, fps=float("nan")), ConfigError, "fps"),
        (options(frames, out, limit=0), ConfigError, "limit"),
        (options(frames, out, checkpoint=-1), ConfigError, "checkpoint"),
        (options(frames, out, mask=tmp_path / "small.png"), InputError, "small.png is 5 x 5"),
        (options(frames, out, mask=tmp_path / "zero.png"), InputError, "shows no object"),
        (options(frames, out, mask=tmp_path / "soft.png"), InputError, "more objects than"),
        (options(frames, out, mask=late), InputError, "shot-5.png is 5 x 5"),
        (options(other, out), SourceError, "shot-0.png"),
        (options(long, out), InputError, "too long"),
        (options(frames, file), OutputError, "is a file, wanted a folder"),
        (options(frames, file / "below"), OutputError, "is a file, wanted a folder"),
    ]
    before = everything(tmp_path)
    for wrong, kind, message in cases:
        with pytest.raises(kind, match=message.replace(".", r"\.")):
            run(wrong)
        assert everything(tmp_path) == before, message
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
        (tmp_path / "new").mkdir()
        before = everything(tmp_path)
        with pytest.raises(OutputError, match=r"6 masks need at least 0\.0 MiB"):
            run(options(frames, tmp_path / "new"))
        assert everything(tmp_path) == before


def test_a_stop_before_the_first_frame_leaves_the_run_before(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    run(options(frames, out))
    before = everything(tmp_path)
    assert not run(options(frames, out), should_stop=lambda: True)["complete"]
    assert everything(tmp_path) == before
