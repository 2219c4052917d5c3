"""`vosengine run` and other people's files: nothing is lost, whatever lies where."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from full_disk import files_up_to, small_disk
from PIL import Image
from stub_stream import stub_stream

from vosengine.commands import outputs as outputs_module
from vosengine.commands import run as command
from vosengine.commands.record import Journal
from vosengine.commands.run import Progress, RunOptions, run
from vosengine.errors import ConfigError, InputError, OutputError, SourceError, VosError
from vosengine.video import VideoWriter, read_labels, write_labels

FRAMES = 6
SIZE = 24, 32


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "make_stream", stub_stream)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return make_frames(tmp_path / "frames")


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
    """Every file below, links followed or not, with its hash: nothing else has to be compared."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            content = path.read_bytes() if path.is_file() else b""
            what = os.readlink(path) if path.is_symlink() else ""
            found[str(path.relative_to(folder))] = what + hashlib.sha256(content).hexdigest()
    return found


def refused(wanted: RunOptions, *paths: Path, below: Path) -> None:
    """The run is refused with a message that names these paths, and nothing has changed."""
    before = everything(below)
    with pytest.raises(OutputError) as caught:
        run(wanted)
    assert everything(below) == before
    for path in paths:
        assert str(path) in str(caught.value)


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
    """A frame that is, by a link, what the run would write."""
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
    for wrong, kind, said in cases:
        with pytest.raises(kind, match=said.replace(".", r"\.")):
            run(wrong)
        assert everything(tmp_path) == before, said
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
        (tmp_path / "new").mkdir()
        before = everything(tmp_path)
        with pytest.raises(OutputError, match=r"6 masks want 0\.0 MiB at the least"):
            run(options(frames, tmp_path / "new"))
        assert everything(tmp_path) == before


def test_a_stop_before_the_first_frame_leaves_the_run_before(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    run(options(frames, out))
    before = everything(tmp_path)
    assert not run(options(frames, out), should_stop=lambda: True)["complete"]
    assert everything(tmp_path) == before


# A killed run knows its frames


def killed(wanted: RunOptions, at: int) -> None:
    """Run in a process of its own that is killed, by kill -9, after so many answers."""

    def kill(progress: Progress) -> None:
        if progress.done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    gc.collect()  # an encoder of this process would be waited for for ever where it is freed there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no thread of ours is running
        child = os.fork()
    if not child:
        gc.disable()
        try:
            run(wanted, report=kill)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("checkpoint", [0, 2])
@pytest.mark.parametrize("at", [1, 2, 5, 6])
def test_killed_and_resumed(frames: Path, tmp_path: Path, at: int, checkpoint: int) -> None:
    whole, out = tmp_path / "whole", tmp_path / "o"
    run(options(frames, whole))
    killed(options(frames, out, checkpoint=checkpoint), at)
    assert not (out / "summary.json").exists()
    assert len(list(out.glob("*.png"))) == at
    summary = run(options(frames, out, checkpoint=checkpoint, resume=True))
    assert (summary["complete"], summary["frame_count"]) == (True, FRAMES)
    assert len(summary["per_frame_ms"]) == FRAMES
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole))
    for path in whole.glob("*.png"):
        np.testing.assert_array_equal(read_labels(out / path.name), read_labels(path))
    assert frames_in(out / "overlay.mp4") == FRAMES


@pytest.mark.parametrize("checkpoint", [0, 2])
def test_killed_and_started_anew(frames: Path, tmp_path: Path, checkpoint: int) -> None:
    """Exactly the killed run's files are removed."""
    out = tmp_path / "o"
    out.mkdir()
    (out / "mine.png").write_text("mine")
    killed(options(frames, out, checkpoint=checkpoint), 5)
    less = make_frames(tmp_path / "less", 2)
    run(options(less, out))
    wanted = ["mine.png", "overlay.mp4", "shot-0.png", "shot-1.png", "summary.json"]
    assert sorted(os.listdir(out)) == wanted


def test_killed_twice_and_in_the_middle_of_a_mask(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    killed(options(frames, out, checkpoint=2), 3)
    with monkeypatch.context() as patch:

        def die(path: Path, data: bytes) -> None:
            (path.parent / f".{path.name}.part").write_bytes(data[:40])
            os.kill(os.getpid(), signal.SIGKILL)

        patch.setattr(outputs_module, "write_whole", die)
        killed(options(frames, out, checkpoint=2, resume=True), -1)
    assert (out / ".shot-2.png.part").exists()
    with (out / "journal.jsonl").open("a") as file:
        file.write('{"frame": "shot-3", "ms": 1.0, "file": "sho')  # as a machine that stops has it
    summary = run(options(frames, out, resume=True))
    assert summary["frames"] == [f"shot-{i}" for i in range(FRAMES)]
    masks = [f"shot-{i}.png" for i in range(FRAMES)]
    assert sorted(os.listdir(out)) == ["overlay.mp4", *masks, "summary.json"]


def test_what_a_killed_run_left_and_was_changed_since_stays(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    killed(options(frames, out), 4)
    write_labels(out / "shot-1.png", np.full(SIZE, 7, np.uint8))
    refused(options(frames, out), out / "shot-1.png", below=tmp_path)
    refused(options(frames, out, resume=True), out / "shot-1.png", below=tmp_path)


def test_a_resumed_run_wants_its_masks_and_its_source(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    stopped = iter([False] * 4 + [True])
    run(options(frames, out), should_stop=lambda: next(stopped))
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for path in frames.iterdir():
        shutil.copy(path, renamed / f"other-{path.name}")
    with pytest.raises(InputError, match="of the run to resume it was shot-0"):
        run(options(renamed, out, resume=True))
    (out / "shot-1.png").unlink()
    refused(options(frames, out, resume=True), out, below=tmp_path)


def test_two_runs_at_once_in_one_folder(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    said: list[str] = []

    def second(progress: Progress) -> None:
        if progress.done == 3:
            with pytest.raises(OutputError, match="another run is writing there") as caught:
                run(options(frames, out))
            said.append(str(caught.value))

    summary = run(options(frames, out), report=second)
    assert said and summary["complete"] and len(list(out.glob("*.png"))) == FRAMES


# A full disk


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("name", ["shot-3.png", "state.safetensors", "summary.json"])
def test_no_room_for_one_file(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The error names it, what else there is can be read; with room again the run goes on."""
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
    """Whatever did not fit is named, and all that is there can be read."""
    frames = noisy(tmp_path / "noise", 60)
    with small_disk(tmp_path / "disk", kib) as disk:
        out = disk / "o"
        with pytest.raises(OutputError, match=r"cannot be written|at the least"):
            run(options(frames, out))
        if out.exists():
            assert all(read_labels(path).shape == SIZE for path in out.glob("*.png"))
            if (out / "overlay.mp4").exists():
                assert frames_in(out / "overlay.mp4") > 0
            assert {"summary.json", "journal.jsonl"} & set(os.listdir(out))
