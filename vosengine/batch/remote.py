"""Process a clip with remote inputs or results: fetch, process locally, upload.

An object store cannot rename a folder, so a remote clip is finished when its clip.json exists: the
file is written last and removed first. Until then checkpoints lie in NAME.part, from which the next
attempt continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..commands.record import FIXED, JOURNAL, STATE, SUMMARY, journal_text, read_earlier
from ..engine.engine import Engine
from .stores import (
    drop_folder,
    fetch,
    fetch_files,
    list_files,
    open_place,
    reaching,
    remove,
    send,
    send_whole,
    write_whole,
)
from .unit import MASKS, STAMP, Job, Remote, parse_stamp, part_of, process_clip

if TYPE_CHECKING:
    from upath import UPath


def remove_results(folder: UPath, names: Iterable[str]) -> None:
    """Remove the files that a batch writes into a clip's folder; the stamp last, because it marks
    the folder as written by a batch."""
    own = [name for name in names if name in (*FIXED, MASKS, STAMP) or name.endswith(".png")]
    remove(folder, sorted(own, key=lambda name: name == STAMP))


def process_remote(
    job: Job,
    remote: Remote,
    engine: Engine | None,
    report: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Process a clip as `process_clip` does, in a temporary local folder.

    Raises  StorageError for an address that cannot be reached, read or written.
    """
    with TemporaryDirectory(prefix="vosengine-", dir=remote.scratch) as scratch:
        local = _local(job, remote, Path(scratch))
        origin = job.options.source, remote.mask or str(job.options.mask or "") or None
        run_local = partial(process_clip, local, engine, report, should_stop, origin=origin)
        if remote.folder is None:
            _fetch_inputs(remote, Path(scratch))
            return run_local()
        place: Any = open_place(remote.folder)
        with reaching(place):
            folders = _RemoteFolders(place, local)
            folders.fetch()
        if not folders.finished:
            _fetch_inputs(remote, Path(scratch))
        facts = run_local(saved=folders.save)
        if facts is None:
            folders.save()
        elif not folders.finished:
            folders.publish()
        return facts


def _local(job: Job, remote: Remote, scratch: Path) -> Job:
    """The job with local paths in place of addresses."""
    folder = job.folder if remote.folder is None else scratch / "out" / job.name
    options = replace(job.options, out=part_of(folder))
    if remote.source is not None:
        options = replace(options, source=str(scratch / "source" / _name(remote.source)))
    if remote.mask is not None:
        options = replace(options, mask=scratch / "mask" / _name(remote.mask))
    return replace(job, folder=folder, options=options, remote=None)


def _name(address: str) -> str:
    return open_place(address).name


def _fetch_inputs(remote: Remote, scratch: Path) -> None:
    for address, name in ((remote.source, "source"), (remote.mask, "mask")):
        if address is not None:
            fetch(address, scratch / name)


class _RemoteFolders:
    """A clip's two remote folders: NAME (finished), and NAME.part (checkpoints)."""

    def __init__(self, place: UPath, job: Job) -> None:
        self._place, self._part = place, place.with_name(f"{job.name}.part")
        self._job = job
        self._sent: dict[str, tuple[int, int]] = {}
        self._stamped = self.finished = False

    def fetch(self) -> None:
        """Fetch saved work of the same clip; remove other contents of NAME.part."""
        if self._has_stamp(self._place):
            self.finished = True
            self._fetch(self._place, [STAMP, SUMMARY], self._job.folder)
            return
        saved, part = list_files(self._part), self._job.part
        if JOURNAL not in saved or not self._has_stamp(self._part):
            remove_results(self._part, saved)
            return
        self._fetch(self._part, [STAMP, JOURNAL], part)
        listed = read_earlier(part)
        self._fetch(self._part, [n for n in (*listed.files, STATE) if n in saved], part)
        for name in (name for name in listed.files if not listed.owns(name)):
            # Newer than the journal; it will be written again.
            (part / name).unlink(missing_ok=True)
        self._stamped = True

    def save(self) -> None:
        """Send what is new in `part`: masks, then the journal that lists them, then the stream.

        The stream is useless without the masks. The summary is sent in the form of a journal, so
        that NAME.part never has both.
        """
        earlier = read_earlier(self._job.part)
        if not (earlier.has_summary or earlier.interrupted):
            return
        with reaching(self._part):
            self._write_stamp()
            masks = {n: self._job.part / n for n in earlier.files if n.endswith(".png")}
            marks = {name: _mark(path) for name, path in masks.items() if path.is_file()}
            new = {masks[n]: n for n, mark in marks.items() if self._sent.get(n) != mark}
            send(new, self._part)
            journal = journal_text("saved", earlier.mask, earlier, earlier.frames)
            write_whole(self._part / JOURNAL, journal)
            if (self._job.part / STATE).is_file():
                send_whole(self._job.part / STATE, self._part / STATE)
            self._sent = marks

    def publish(self) -> None:
        """Send the finished folder to NAME, clip.json last, and drop NAME.part."""
        folder = self._job.folder
        with reaching(self._place):
            self._write_stamp()  # marks NAME as a batch's while it has no clip.json
            stale = list_files(self._place)
            remove(self._place, [STAMP] if STAMP in stale else [])
            remove_results(self._place, stale)
            files = {path: path.name for path in folder.iterdir() if path.name != STAMP}
            send(files, self._place)
            send_whole(folder / STAMP, self._place / STAMP)
            remove_results(self._part, list_files(self._part))
            drop_folder(self._part)

    def _write_stamp(self) -> None:
        if not self._stamped:
            write_whole(self._part / STAMP, json.dumps(self._job.stamp, indent=1) + "\n")
            self._stamped = True

    def _has_stamp(self, place: UPath) -> bool:
        """Whether the folder has this clip's stamp."""
        stamped = STAMP in list_files(place)
        return stamped and parse_stamp((place / STAMP).read_bytes()) == self._job.stamp

    def _fetch(self, place: UPath, names: list[str], folder: Path) -> None:
        fetch_files(place, [(place / name).path for name in names], folder)


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
