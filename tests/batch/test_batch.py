"""`vosengine batch`: each clip is processed once, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_clips import (
    CLIPS,
    SIZE,
    batch_arguments,
    in_another_process,
    in_this_process,
    make_clips,
    options,
    results,
    run_alone,
    square,
)
from batch_units import Broken, Scripted, Sleeper, deadly
from full_disk import small_disk
from typer.testing import CliRunner

from vosengine.batch.plan import plan
from vosengine.batch.supervisor import Event, Supervisor
from vosengine.batch.unit import ClipWorker, process_clip
from vosengine.batch.worker import FatalWorkError
from vosengine.cli.app import app
from vosengine.commands.batch import batch
from vosengine.engine.engine import Engine
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import DeviceError, OutputError, StateError
from vosengine.rle import decode
from vosengine.video import read_labels, write_labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    return run_alone(data, tmp_path_factory.mktemp("alone"))


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below, except those that each batch rewrites."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder
    }


# Finished folders


def test_by_processes_it_writes_what_run_writes_and_only_once(
    data: Path, alone: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary = batch(options(data, out, workers=2, rle=True))
    assert (summary["done"], summary["frames"], summary["complete"]) == (3, 13, True)
    assert json.loads((out / "batch.json").read_text()) == summary
    assert (out / "failed.jsonl").read_text() == ""
    for name, count in CLIPS.items():
        assert results(out / name) == alone[name]
        assert json.loads((out / name / "summary.json").read_text())["complete"] is True
        lines = [json.loads(x) for x in (out / name / "masks.jsonl").read_text().splitlines()]
        assert {line["frame"] for line in lines} <= {f"{i:05d}" for i in range(count)}
        for line in lines:
            runs = line["segmentation"]
            labels = read_labels(out / name / f"{line['frame']}.png")
            mask = decode(runs["counts"], tuple(runs["size"]))
            np.testing.assert_array_equal(mask, labels == line["id"])
    before = everything(out)
    summary = batch(options(data, out, workers=2, rle=True))
    assert (summary["skipped"], summary["done"], summary["frames"]) == (3, 0, 0)
    assert everything(out) == before


def test_what_was_finished_otherwise_is_refused_or_redone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    data = Path(shutil.copytree(data, tmp_path / "data"))
    out = tmp_path / "out"
    batch(options(data, out))
    before = everything(out)
    write_labels(data / "b.png", square(9, 1))
    with pytest.raises(OutputError, match=r"1 were finished .*: b; .*mask_sha256.*--redo"):
        batch(options(data, out))
    with pytest.raises(OutputError, match=r"3 were finished .* with limit None, now 2"):
        batch(options(data, out, run={"limit": 2}))
    assert everything(out) == before
    (out / "b" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"b/notes\.txt: would be lost"):
        batch(options(data, out, redo=True))
    (out / "b" / "notes.txt").unlink()
    summary = batch(options(data, out, redo=True))
    assert [row["state"] for row in summary["table"]] == ["skipped", "done", "skipped"]
    np.testing.assert_array_equal(read_labels(out / "b" / "00000.png"), square(9, 1))
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["a", "b", "c"]
    shutil.rmtree(out / "c")
    (out / "c").mkdir()
    with pytest.raises(OutputError, match="c: is in the way"):
        batch(options(data, out, redo=True))


def test_an_unfinished_clip_of_other_options_begins_anew(
    data: Path, alone: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    first = plan(options(data, tmp_path / "out", run={"limit": 5}))[1]
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count > 4

    assert process_clip(first, should_stop=stop) is None
    assert (first.part / "state.safetensors").is_file() and not first.folder.exists()
    other = plan(options(data, tmp_path / "out"))[1]
    seen: list[int] = []
    assert process_clip(other, report=seen.append)
    assert len(seen) == CLIPS["b"]
    assert results(other.folder) == alone["b"]
    assert not other.part.exists()


def test_killed_between_its_last_steps(data: Path, tmp_path: Path) -> None:
    """Complete, but not yet tidied or renamed: no frame is processed again."""
    job = plan(options(data, tmp_path / "out", rle=True))[0]
    process_clip(job)
    frames = sorted(os.listdir(job.folder))
    os.rename(job.folder, job.part)
    identity = json.loads((job.part / "summary.json").read_text())["run"]
    (job.part / "journal.jsonl").write_text(json.dumps({"run": identity, "mask": None}) + "\n")
    (job.part / "state.safetensors").write_bytes(b"state")
    job.old.mkdir()
    seen: list[int] = []
    assert process_clip(job, report=seen.append) == process_clip(job) | {
        "seconds": pytest.approx(0, abs=9)
    }
    assert not seen and sorted(os.listdir(job.folder)) == frames
    assert not job.old.exists()


def test_streams_are_closed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine for all clips of a model, and it keeps no clip's memory."""
    opened: list[Segmenter] = []
    make = Engine.open

    def noted(self: Engine, **arguments: Any) -> Segmenter:
        opened.append(make(self, **arguments))
        return opened[-1]

    monkeypatch.setattr(Engine, "open", noted)
    worker = ClipWorker(1)
    for job in plan(options(data, tmp_path / "out")):
        worker(job, lambda frames: None, lambda: False)
    assert len(worker._engines) == 1 and len(opened) == 3
    assert {stream.runs_on for stream in opened} == {*worker._engines.values()}
    assert opened[0].runs_on.pools.used == 0
    for stream in opened:
        with pytest.raises(StateError, match="closed"):
            stream.step(np.zeros((*SIZE, 3), np.uint8))


def test_a_full_disk_stops_everything(data: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        big = options(data, disk / "out", run={"overlay": False})
        done, full, _ = plan(big)
        worker = ClipWorker(1)
        assert worker(done, lambda frames: None, lambda: False)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
        with pytest.raises(FatalWorkError, match="make room"):
            worker(full, lambda frames: None, lambda: False)
        (disk / "filler").write_bytes(bytes((disk / "filler").stat().st_size - 8192))
        with pytest.raises(FatalWorkError, match="No space left"):
            worker(full, lambda frames: None, lambda: False)
        (disk / "filler").unlink()
        before = everything(disk / "out" / "a")
        assert worker(full, lambda frames: None, lambda: False)
        assert everything(disk / "out" / "a") == before


# Killed


def deadly_batch(
    data: Path, out: Path, notes: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> int:
    """`vosengine batch` with somebody who dies in the middle of a clip; its exit code. Only where
    it is the parent it is another process."""
    if victim == "parent":
        return in_another_process(victim, notes, batch_arguments(data, out))
    monkeypatch.setitem(batch.__kwdefaults__, "worker", deadly(victim, notes))
    return CliRunner().invoke(app, batch_arguments(data, out)).exit_code


@pytest.mark.parametrize("victim", ["worker", "parent", "stop"])
def test_killed_in_the_middle_of_a_clip(
    data: Path,
    alone: dict[str, dict[str, bytes]],
    tmp_path: Path,
    victim: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir()
    code = deadly_batch(data, out, notes, victim, monkeypatch)
    states = ["done"] * 3
    if victim != "worker":
        assert code == (-signal.SIGKILL if victim == "parent" else 130)
        assert (out / "a").is_dir() and not (out / "b").exists()
        states[0] = "skipped"
        code = deadly_batch(data, out, notes, "nobody", monkeypatch)
    assert code == 0
    assert {name: results(out / name) for name in CLIPS} == alone
    table = json.loads((out / "batch.json").read_text())
    assert [row["state"] for row in table["table"]] == states
    answered = len((notes / "b").read_text())
    assert CLIPS["b"] <= answered <= CLIPS["b"] + 2  # a checkpoint's interval
    assert (notes / "dead").exists()


# Processes


def supervise(
    jobs: list[Any],
    start: Any = Scripted,
    stop: Callable[[], bool] = lambda: False,
    **settings: int,
) -> tuple[bool, list[Event]]:
    events: list[Event] = []
    settings = {"workers": 2, "retries": 1, **settings}
    supervisor = Supervisor(start, listen=events.append, **settings)
    try:
        stopped = supervisor.work(jobs, stop)
    finally:
        assert not supervisor._workers
    return stopped, [event for event in events if event.kind != "frames"]


def test_what_fails_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    script = {
        "poison": ("failed", 2, "died 2 times, at last: exit code 7"),
        "bad": ("failed", 1, "InputError: mask: bad"),
        "killed once": ("done", 2, ""),
        "ended once": ("done", 1, ""),
        "raises": ("failed", 2, "RuntimeError: not of ours"),
        "fine": ("done", 1, ""),
    }
    stopped, events = supervise([(name, name, tmp_path) for name in script])
    assert not stopped and len(events) == len(script)
    for event in events:
        kind, tries, text = script[event.job[0]]
        assert (event.kind, event.tries) == (kind, tries), event
        assert text in str(event.value)


def test_what_no_clip_can_do_without_stops_all(tmp_path: Path) -> None:
    jobs = [("1", "long", tmp_path), ("2", "full", tmp_path), ("3", "fine", tmp_path)]
    with pytest.raises(OutputError, match="disk: full"):
        supervise(jobs)
    assert not (tmp_path / "3").exists()
    with pytest.raises(DeviceError, match="2 did not start: exit code 3"):
        supervise(jobs, Broken, workers=1)


def test_asked_to_stop(tmp_path: Path) -> None:
    jobs = [(name, "long", tmp_path) for name in "abc"]
    stopped, events = supervise(jobs, stop=lambda: len([*tmp_path.iterdir()]) == 2)
    assert stopped and [event.kind for event in events] == ["stopped", "stopped"]


def test_eight_processes_do_eight_times_as_much() -> None:
    _, events = supervise([0.4] * 40, Sleeper, workers=8)
    done = [event.value for event in events]
    processes = {value["process"] for value in done}
    assert len(done) == 40 and len(processes) == 8
    start = max(min(x["began"] for x in done if x["process"] == p) for p in processes)
    end = min(max(x["ended"] for x in done if x["process"] == p) for p in processes)
    busy = sum(max(0.0, min(x["ended"], end) - max(x["began"], start)) for x in done)
    assert busy >= 0.9 * 8 * (end - start)  # one process alone is busy all the time
