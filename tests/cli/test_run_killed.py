"""`vosengine run` is killed, and resumed or started over."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from run_folders import FRAMES, SIZE, frames_in, make_frames, options, refused
from stub_stream import stub_stream

from vosengine.commands import outputs as outputs_module
from vosengine.commands import run as command
from vosengine.commands.run import Progress, RunOptions, run
from vosengine.errors import InputError, OutputError
from vosengine.video import read_labels, write_labels


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "make_stream", stub_stream)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return make_frames(tmp_path / "frames")


def killed(wanted: RunOptions, at: int) -> None:
    """Run in a separate process that is killed with SIGKILL after that many results."""

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
@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(InputError, match="in the run to resume it was shot-0"):
        run(options(renamed, out, resume=True))
    (out / "shot-1.png").unlink()
    refused(options(frames, out, resume=True), out, below=tmp_path)


def test_two_runs_at_once_in_one_folder(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    errors: list[str] = []

    def second(progress: Progress) -> None:
        if progress.done == 3:
            with pytest.raises(OutputError, match="another run is writing there") as caught:
                run(options(frames, out))
            errors.append(str(caught.value))

    summary = run(options(frames, out), report=second)
    assert errors and summary["complete"] and len(list(out.glob("*.png"))) == FRAMES
