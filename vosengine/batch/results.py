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
LOCK_WAIT_S = 60.0  # for the processes of a batch that was killed, which finish a frame


@dataclass(frozen=True)
class Found:
    """Existing results of a clip.

    finished, part  the stamps of its finished and of its unfinished folder, None without one
    leftover        whether there is something to tidy once it is finished
    in_the_way      of the two folders the one that no batch wrote
    """

    finished: dict[str, Any] | None
    part: dict[str, Any] | None
    leftover: bool
    in_the_way: str | None = None


class Results(Protocol):
    """The folder for a folder of every clip. `lock` is a file that processes may lock."""

    lock: Path | None

    def check(self) -> None:
        """See that it can be written, without writing. Raises OutputError or StorageError."""

    def hold(self) -> Any:
        """A context in which no other batch has the folder, which is made."""

    def find(self, jobs: Sequence[Job]) -> list[Found]:
        """Find the existing results of each clip."""

    def check_own(self, job: Job) -> None:
        """Raise OutputError where a finished folder holds what would be lost."""

    def tidy(self, job: Job) -> None:
        """Remove what is left of a clip that is finished."""

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
        """Processes of the batch hold on to the lock as well, and so does one that is killed until
        the last of them has finished its frame."""
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

    def find(self, jobs: Sequence[Job]) -> list[Found]:
        return [self._find(job) for job in jobs]

    def _find(self, job: Job) -> Found:
        finished, part = (read_stamp(folder) for folder in (job.folder, job.part))
        for folder, stamp in ((job.folder, finished), (job.part, part)):
            if stamp is None and os.path.lexists(folder) and not _is_empty_part(folder, job):
                return Found(finished, part, leftover=False, in_the_way=str(folder))
        return Found(finished, part, leftover=job.old.exists())

    def check_own(self, job: Job) -> None:
        earlier = read_earlier(job.folder)
        for name in sorted({*os.listdir(job.folder)} - {SUMMARY, STAMP, MASKS}):
            if not earlier.owns(name):
                raise _would_be_lost(job.folder / name)

    def tidy(self, job: Job) -> None:
        shutil.rmtree(job.old, ignore_errors=True)  # if it was killed before it could do that

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
    """Whether it is what a batch leaves that is killed before it has written a byte there."""
    names = os.listdir(folder) if folder == job.part and folder.is_dir() else ["another"]
    return not {*names} - {f".{STAMP}.part"}


class RemoteResults:
    """See Results. What is asked of many clips is asked at once."""

    lock: Path | None = None

    def __init__(self, root: UPath) -> None:
        self._root = root
        self._texts: dict[str, str] = {}

    def check(self) -> None:
        with reaching(self._root):
            list_files(self._root)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Nothing is locked: object stores have no locks."""
        yield

    def _read(self, files: Sequence[UPath]) -> dict[str, bytes]:
        """The contents of those that are there, by their paths."""
        if not files:
            return {}
        found = self._root.fs.cat([file.path for file in files], on_error="return")
        for data in found.values():
            if isinstance(data, BaseException) and not isinstance(data, FileNotFoundError):
                raise data
        by_path = {path: data for path, data in found.items() if isinstance(data, bytes)}
        strip = self._root.fs._strip_protocol
        return {file.path: by_path[s] for file in files if (s := strip(file.path)) in by_path}

    def find(self, jobs: Sequence[Job]) -> list[Found]:
        with reaching(self._root):
            folders = {*list_files(self._root, "directory")}
            names = [n for job in jobs for n in (job.name, job.part.name) if n in folders]
            read = self._read([self._root / name / STAMP for name in names])
            stamps = {n: parse_stamp(read.get((self._root / n / STAMP).path, b"")) for n in names}
            return [self._found(job, stamps, folders) for job in jobs]

    def _found(self, job: Job, stamps: dict[str, Any], folders: set[str]) -> Found:
        finished, part = stamps.get(job.name), stamps.get(job.part.name)
        # Without its own stamp NAME is a batch's if NAME.part is: it was killed when it sent it.
        for name, known in ((job.part.name, part), (job.name, finished or part)):
            if name in folders and known is None and list_files(self._root / name):
                return Found(finished, part, False, str(self._root / name))
        return Found(finished, part, leftover=job.part.name in folders)

    def check_own(self, job: Job) -> None:
        """By names and sizes: contents are not fetched for this."""
        folder = self._root / job.name
        with reaching(folder):
            data = self._read([folder / SUMMARY]).get((folder / SUMMARY).path, b"{}")
            listed = (parse_stamp(data) or {}).get("files", {})
            for name, found in list_files(folder).items():
                if name in (SUMMARY, STAMP, MASKS):
                    continue
                if name not in listed or found["size"] != listed[name]["bytes"]:
                    raise _would_be_lost(folder / name)

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
        """Objects cannot grow: it is written anew."""
        self.write(name, self._texts[name] + text)


def _would_be_lost(path: object) -> OutputError:
    return OutputError(
        f"{path}: would be lost, but no batch wrote it, or it was changed since; move it away"
    )
