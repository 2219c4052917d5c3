"""Results of a batch: in a local folder, or in a remote one."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..commands.record import SUMMARY, read_earlier
from ..errors import OutputError
from ..files import cannot_write, check_output_folder
from ..files import write_whole as write_local
from ..video import prepare_output_folder
from .remote import remove_results
from .stores import AnyPath, list_files, reaching, write_whole
from .unit import MASKS, STAMP, Job, frame_count, parse_stamp, read_stamp

if TYPE_CHECKING:
    from upath import UPath

LOCK = ".batch.lock"
LOCK_WAIT_S = 60.0  # processes of a batch that was killed first finish their frame


@dataclass(frozen=True)
class ExistingResults:
    """Existing results of a clip.

    finished  stamp of the finished folder; None: there is none
    leftover  whether `tidy` has something to remove
    foreign   the finished or the unfinished folder, if it was not written by a batch
    """

    finished: dict[str, Any] | None
    leftover: bool
    foreign: str | None = None


class Results(Protocol):
    """The results folder of a batch. `lock` is a file for locks of processes; None: no locks."""

    lock: Path | None

    def check(self) -> None:
        """Check without writing that it can be written. Raises OutputError or StorageError."""

    def hold(self) -> Any:
        """A context that creates the folder and keeps other batches out of it."""

    def find(self, jobs: Sequence[Job]) -> list[ExistingResults]:
        """Find the existing results of each clip."""

    def check_replaceable(self, job: Job) -> None:
        """Raise OutputError if a finished folder has files that no batch wrote."""

    def tidy(self, job: Job) -> None:
        """Remove leftovers of a finished clip."""

    def frames(self, jobs: Sequence[Job]) -> list[int]:
        """Count the frames of each finished clip."""

    def write(self, name: str, text: str) -> None:
        """Write a file in the folder, atomically."""

    def append(self, name: str, text: str) -> None:
        """Append to a file in the folder that `write` has created."""


def results_at(place: AnyPath) -> Results:
    return LocalResults(place) if isinstance(place, Path) else RemoteResults(place)


class LocalResults:
    """See Results."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.lock: Path | None = root / LOCK

    def check(self) -> None:
        check_output_folder(self._root)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lock the folder. Worker processes share the lock, so after the batch is killed it is held
        until the last of them has finished its frame."""
        prepare_output_folder(self._root)
        with (self._root / LOCK).open("ab") as file:
            end = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > end:
                        raise OutputError(
                            f"{self._root}: another batch is writing there; wait for it, or choose "
                            "another folder"
                        ) from error
                    time.sleep(0.1)
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield

    def find(self, jobs: Sequence[Job]) -> list[ExistingResults]:
        return [self._find(job) for job in jobs]

    def _find(self, job: Job) -> ExistingResults:
        finished, part = (read_stamp(folder) for folder in (job.folder, job.part))
        for folder, stamp in ((job.folder, finished), (job.part, part)):
            if stamp is None and os.path.lexists(folder) and not _is_empty_part(folder, job):
                return ExistingResults(finished, leftover=False, foreign=str(folder))
        return ExistingResults(finished, leftover=job.old.exists())

    def check_replaceable(self, job: Job) -> None:
        earlier = read_earlier(job.folder)
        for name in sorted({*os.listdir(job.folder)} - {SUMMARY, STAMP, MASKS}):
            if not earlier.owns(name):
                raise _loss_error(job.folder / name)

    def tidy(self, job: Job) -> None:
        # Left if the batch was killed before it removed it.
        shutil.rmtree(job.old, ignore_errors=True)

    def frames(self, jobs: Sequence[Job]) -> list[int]:
        return [frame_count(job.folder) for job in jobs]

    def write(self, name: str, text: str) -> None:
        write_local(self._root / name, text)

    def append(self, name: str, text: str) -> None:
        try:
            with (self._root / name).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise cannot_write(self._root / name, error) from error


def _is_empty_part(folder: Path, job: Job) -> bool:
    """Whether it is what a batch leaves that was killed before it wrote anything there."""
    names = os.listdir(folder) if folder == job.part and folder.is_dir() else ["not a part"]
    return not {*names} - {f".{STAMP}.part"}


class RemoteResults:
    """See Results. Requests for many clips are sent together."""

    lock: Path | None = None

    def __init__(self, root: UPath) -> None:
        self._root = root
        self._texts: dict[str, str] = {}

    def check(self) -> None:
        with reaching(self._root):
            list_files(self._root)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Locks nothing: object stores have no locks."""
        yield

    def _read(self, files: Sequence[UPath]) -> dict[str, bytes]:
        """Contents of the files that exist, by path."""
        if not files:
            return {}
        answers = self._root.fs.cat([file.path for file in files], on_error="return")
        for data in answers.values():
            if isinstance(data, BaseException) and not isinstance(data, FileNotFoundError):
                raise data
        by_path = {path: data for path, data in answers.items() if isinstance(data, bytes)}
        strip = self._root.fs._strip_protocol
        return {file.path: by_path[s] for file in files if (s := strip(file.path)) in by_path}

    def find(self, jobs: Sequence[Job]) -> list[ExistingResults]:
        with reaching(self._root):
            folders = {*list_files(self._root, "directory")}
            names = [n for job in jobs for n in (job.name, job.part.name) if n in folders]
            read = self._read([self._root / name / STAMP for name in names])
            stamps = {n: parse_stamp(read.get((self._root / n / STAMP).path, b"")) for n in names}
            return [self._existing(job, stamps, folders) for job in jobs]

    def _existing(self, job: Job, stamps: dict[str, Any], folders: set[str]) -> ExistingResults:
        finished, part = stamps.get(job.name), stamps.get(job.part.name)
        # NAME without a stamp was written by a batch if NAME.part was: it was killed while sending.
        for name, known in ((job.part.name, part), (job.name, finished or part)):
            if name in folders and known is None and list_files(self._root / name):
                return ExistingResults(finished, leftover=False, foreign=str(self._root / name))
        return ExistingResults(finished, leftover=job.part.name in folders)

    def check_replaceable(self, job: Job) -> None:
        """Compares names and sizes only; contents are not fetched."""
        folder = self._root / job.name
        with reaching(folder):
            data = self._read([folder / SUMMARY]).get((folder / SUMMARY).path, b"{}")
            listed = (parse_stamp(data) or {}).get("files", {})
            for name, info in list_files(folder).items():
                if name in (SUMMARY, STAMP, MASKS):
                    continue
                if name not in listed or info["size"] != listed[name]["bytes"]:
                    raise _loss_error(folder / name)

    def tidy(self, job: Job) -> None:
        part = self._root / job.part.name
        with reaching(part):
            remove_results(part, list_files(part))

    def frames(self, jobs: Sequence[Job]) -> list[int]:
        files = [self._root / job.name / SUMMARY for job in jobs]
        with reaching(self._root):
            read = self._read(files)
        return [len((parse_stamp(read.get(f.path, b"")) or {}).get("frames", ())) for f in files]

    def write(self, name: str, text: str) -> None:
        self._texts[name] = text
        with reaching(self._root / name):
            write_whole(self._root / name, text)

    def append(self, name: str, text: str) -> None:
        """Rewrites the whole file, because objects cannot grow."""
        self.write(name, self._texts[name] + text)


def _loss_error(path: object) -> OutputError:
    return OutputError(
        f"{path}: would be lost, but no batch wrote it, or it was changed since; move it away"
    )
