"""Clips and results on other file systems: fetched, sent, processed once, whatever fails."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from batch_clips import (
    CLIPS,
    batch_arguments,
    in_another_process,
    make_clips,
    options,
    results,
    run_alone,
)
from batch_units import deadly
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from vosengine.batch.clips import find_clips
from vosengine.batch.plan import BatchOptions, plan
from vosengine.batch.stores import open_place
from vosengine.batch.supervisor import Event, Supervisor
from vosengine.batch.unit import ClipWorker
from vosengine.batch.worker import FatalWorkError
from vosengine.cli.app import app
from vosengine.commands.batch import batch
from vosengine.errors import DependencyError, InputError, OutputError, StorageError

Alone = dict[str, dict[str, bytes]]
BUCKET = "memory://bucket"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return run_alone(data, tmp_path_factory.mktemp("alone"))


@pytest.fixture
def bucket(data: Path) -> Iterator[MemoryFileSystem]:
    """In-memory bucket with the clips in bucket/clips."""
    system = fsspec.filesystem("memory")
    system.put(str(data), "/bucket/clips", recursive=True)
    yield system
    system.rm("/", recursive=True)
    system.pseudo_dirs[:] = [""]


class Here:
    """Replaces the processes: jobs run one after another in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, frames: int | None = None) -> None:
        self.left, self.answered = frames, 0
        monkeypatch.setattr(Supervisor, "work", lambda pool, jobs, stop: self.work(pool, jobs))

    def work(self, pool: Any, jobs: list[Any]) -> bool:
        worker = pool._start()
        for job in jobs:
            try:
                facts = worker(job, self.count, lambda: self.left == 0)
            except FatalWorkError as error:
                raise error.error from error
            pool._listen(Event("stopped" if facts is None else "done", job, facts))
            if facts is None:
                return True
        return False

    def count(self, frames: int) -> None:
        self.answered += frames
        self.left = None if self.left is None else self.left - frames


def sent(system: Any, root: str) -> Alone:
    """Masks and overlays of every finished clip, that is, with clip.json."""
    finished = {}
    for name in CLIPS:
        if system.exists(f"{root}/{name}/clip.json"):
            files = system.ls(f"{root}/{name}", detail=False)
            kept = (f for f in files if f.endswith((".png", ".mp4")))
            finished[name] = {f.rpartition("/")[2]: system.cat_file(f) for f in kept}
    return finished


def names(system: Any, root: str) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in system.ls(root, detail=False))


def test_from_a_bucket_to_a_bucket(
    bucket: MemoryFileSystem, alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Here(monkeypatch)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    settings = options(f"{BUCKET}/clips", f"{BUCKET}/out", rle=True, scratch=scratch)
    summary = batch(settings)
    assert (summary["done"], summary["complete"], here.answered) == (3, True, 13)
    assert sent(bucket, "/bucket/out") == alone
    assert names(bucket, "/bucket/out") == ["a", "b", "batch.json", "c", "failed.jsonl"]
    assert json.loads(bucket.cat_file("/bucket/out/batch.json")) == summary
    clip_summary = json.loads(bucket.cat_file("/bucket/out/b/summary.json"))
    assert clip_summary["source"] == f"{BUCKET}/clips/b"
    assert clip_summary["mask"]["path"] == f"{BUCKET}/clips/b.png"
    assert not [*scratch.iterdir()]
    again = batch(settings)
    assert (again["skipped"], here.answered) == (3, 13)
    assert [row["frames"] for row in again["table"]] == [*CLIPS.values()]


def test_in_a_bucket_what_was_finished_otherwise_is_refused_or_redone(
    bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    Here(monkeypatch)
    clips, out = f"{BUCKET}/clips", f"{BUCKET}/out"
    batch(options(clips, out))
    with pytest.raises(OutputError, match=r"3 were finished .* with limit None, now 2"):
        batch(options(clips, out, run={"limit": 2}))
    bucket.pipe_file("/bucket/out/b/notes.txt", b"mine")
    with pytest.raises(OutputError, match=r"b/notes\.txt: would be lost"):
        batch(options(clips, out, redo=True, run={"limit": 2}))
    bucket.rm_file("/bucket/out/b/notes.txt")
    batch(options(clips, out, redo=True, run={"limit": 2}))
    wanted = ["00000.png", "00001.png", "clip.json", "overlay.mp4", "summary.json"]
    assert names(bucket, "/bucket/out/b") == wanted
    bucket.rm("/bucket/out/c", recursive=True)
    bucket.pipe_file("/bucket/out/c/x.png", b"mine")
    with pytest.raises(OutputError, match="out/c: is in the way"):
        batch(options(clips, out, redo=True))
    bucket.rm("/bucket/out/c", recursive=True)
    bucket.pipe_file("/bucket/clips/a.png", bucket.cat_file("/bucket/clips/b.png"))
    with pytest.raises(OutputError, match=r"1 were finished .*: a; .*mask_version"):
        batch(options(clips, out, run={"limit": 2}))


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_in_a_bucket_a_stopped_clip_goes_on(
    bucket: MemoryFileSystem, alone: Alone, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    here = Here(monkeypatch, frames)
    settings = options(f"{BUCKET}/clips", f"{BUCKET}/out")
    summary = batch(BatchOptions((f"{BUCKET}/clips/b",), settings.out, settings.run))
    assert (summary["stopped"], here.answered) == (1, frames)
    assert "b.part" in names(bucket, "/bucket/out") and "b" not in names(bucket, "/bucket/out")
    here = Here(monkeypatch)
    batch(settings)
    assert here.answered == 13 - frames
    assert sent(bucket, "/bucket/out") == alone
    assert "b.part" not in names(bucket, "/bucket/out")


class Unplugged(Exception):
    """Stands for the death of the process: not handled anywhere."""


@pytest.mark.parametrize("kind", [Unplugged, OSError])
def test_wherever_it_breaks_off_a_bucket_is_right_in_the_end(
    bucket: MemoryFileSystem, alone: Alone, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """The batch is interrupted at every fifth of its writes."""
    settings = BatchOptions((f"{BUCKET}/clips/b",), f"{BUCKET}/out", options("", "").run)
    count = last = 0
    put, remove = MemoryFileSystem.put_file, MemoryFileSystem.rm_file
    opened = MemoryFileSystem._open

    def counted(plain: Any) -> Any:
        def step(self: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if plain is not opened or args[:1] == ("wb",) or kwargs.get("mode") == "wb":
                count += 1
                if count > last > 0:
                    raise kind("the cable")
            return plain(self, path, *args, **kwargs)

        return step

    monkeypatch.setattr(MemoryFileSystem, "put_file", counted(put))
    monkeypatch.setattr(MemoryFileSystem, "rm_file", counted(remove))
    monkeypatch.setattr(MemoryFileSystem, "_open", counted(opened))
    Here(monkeypatch)
    batch(settings)
    whole = count
    assert whole > 20
    for end in range(1, whole, 5):
        bucket.rm("/bucket/out", recursive=True)
        count, last = 0, end
        with pytest.raises(StorageError if kind is OSError else Unplugged):
            batch(settings)
        finished = sent(bucket, "/bucket/out")
        assert finished in ({}, {"b": alone["b"]})
        count = last = 0
        here = Here(monkeypatch)
        batch(settings)
        assert sent(bucket, "/bucket/out") == {"b": alone["b"]}, end
        assert here.answered <= CLIPS["b"]
        assert not [n for n in names(bucket, "/bucket/out") if n.endswith(".part")] or finished


def test_a_bucket_that_cannot_be_reached_stops_everything(
    bucket: MemoryFileSystem, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Here(monkeypatch)
    plain = MemoryFileSystem.put_file

    def refused(self: Any, local: str, remote: str, **arguments: Any) -> None:
        if "/out/b" in remote:
            raise PermissionError("403: not for you")
        plain(self, local, remote, **arguments)

    monkeypatch.setattr(MemoryFileSystem, "put_file", refused)
    settings = options(f"{BUCKET}/clips", f"{BUCKET}/out")
    with pytest.raises(StorageError, match=r"out/b.*403: not for you.*check the address"):
        batch(settings)
    assert sent(bucket, "/bucket/out") == {"a": alone["a"]}
    table = json.loads(bucket.cat_file("/bucket/out/batch.json"))["table"]
    assert [row["state"] for row in table] == ["done", "waiting", "waiting"]
    monkeypatch.setattr(MemoryFileSystem, "put_file", plain)
    before = here.answered
    batch(settings)
    assert sent(bucket, "/bucket/out") == alone
    assert here.answered - before <= CLIPS["b"] + CLIPS["c"]


def test_addresses_that_are_refused(
    bucket: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        find_clips([f"{BUCKET}/nothing"])
    with pytest.raises(InputError, match="nosuch:// is no file system that fsspec knows"):
        find_clips(["nosuch://bucket/clips"])
    with pytest.raises(InputError, match="matches no video"):
        find_clips([f"{BUCKET}/clips/*.mp4"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DependencyError, match=r"s3fs.*install that package beside vosengine"):
        find_clips(["s3://bucket/clips"])

    def broken(self: Any, path: str, **arguments: Any) -> None:
        raise TimeoutError("no route to host")

    monkeypatch.setattr(MemoryFileSystem, "info", broken)
    with pytest.raises(StorageError, match="no route to host"):
        find_clips([f"{BUCKET}/clips"])
    with pytest.raises(InputError, match=r"scratch: .*no such folder"):
        plan(options(f"{BUCKET}/clips", tmp_path, scratch=tmp_path / "none"))


def test_clips_at_addresses_are_found(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    clips = find_clips([f"{BUCKET}/clips"])
    entries = [(clip.name, clip.source, str(clip.mask)) for clip in clips]
    wanted = [(n, f"{BUCKET}/clips/{n}", f"{BUCKET}/clips/{n}.png") for n in CLIPS]
    assert entries == wanted
    assert find_clips([f"{BUCKET}/clips/*"]) == clips
    line = {"clip": "clips/a/*.png", "mask": "clips/b.png", "name": "z"}
    bucket.pipe_file("/bucket/m.jsonl", json.dumps(line).encode())
    (clip,) = find_clips([f"{BUCKET}/m.jsonl"])
    assert (clip.source, str(clip.mask)) == (f"{BUCKET}/clips/a/*.png", f"{BUCKET}/clips/b.png")
    local = tmp_path / "m.csv"
    local.write_text(f"clip,mask\n{BUCKET}/clips/a,{BUCKET}/clips/a.png\n")
    (clip,) = find_clips([str(local)])
    assert (clip.name, clip.source) == ("a", f"{BUCKET}/clips/a")
    (job,) = plan(options(local, tmp_path / "out"))
    assert ClipWorker(1)(job, lambda frames: None, lambda: False) == {
        "frames": CLIPS["a"],
        "seconds": pytest.approx(0, abs=60),
    }
    assert results(tmp_path / "out" / "a")["00002.png"]


def test_by_processes_that_are_killed_through_addresses(
    data: Path, alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """file:// is treated like any remote file system: no rename, no lock."""
    clips, out = f"file://{data}", f"file://{tmp_path}/out"
    for victim in ("parent", "worker"):
        notes = tmp_path / victim
        notes.mkdir()
        if victim == "parent":
            assert in_another_process(victim, notes, batch_arguments(clips, out)) != 0
            assert not (tmp_path / "out" / "b").exists()
            continue
        monkeypatch.setitem(batch.__kwdefaults__, "worker", deadly("nobody", notes))
        assert CliRunner().invoke(app, batch_arguments(clips, out)).exit_code == 0
    assert {name: results(tmp_path / "out" / name) for name in CLIPS} == alone
    answered = sum(len((tmp_path / v / "b").read_text()) for v in ("parent", "worker"))
    assert CLIPS["b"] <= answered <= CLIPS["b"] + 2
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".part")]


@pytest.fixture
def website(data: Path) -> Iterator[str]:
    """Serve the folder of clips over http://."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = partial(Quiet, directory=str(data))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_masks_and_videos_by_http(
    website: str, data: Path, alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Here(monkeypatch)
    manifest = tmp_path / "m.jsonl"
    line = {"clip": str(data / "a"), "mask": f"{website}/a.png"}
    manifest.write_text(json.dumps(line) + "\n")
    batch(options(manifest, tmp_path / "out"))
    assert results(tmp_path / "out" / "a") == alone["a"]
    manifest.write_text(json.dumps({**line, "mask": f"{website}/none.png"}) + "\n")
    with pytest.raises(InputError, match=r"1 missing: .*none\.png"):
        batch(options(manifest, tmp_path / "out"))
    assert open_place(f"{website}/a.png").name == "a.png"
