"""Record of a run's files: its journal during the run, its summary afterwards.

summary.json lists every file with its size and hash. journal.jsonl is written during the run, each
line before the file that it lists, and removed once the summary is written: a journal means that a
run was killed or is still in progress.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import Fingerprint, cannot_write, scratch_of
from ..video.video_writer import part_of

SUMMARY = "summary.json"
JOURNAL = "journal.jsonl"
STATE = "state.safetensors"
OVERLAY = "overlay.mp4"
FIXED = (SUMMARY, JOURNAL, STATE, OVERLAY)


@dataclass
class Earlier:
    """Results of an earlier run in a folder; empty if there is none.

    files        files that it wrote, with their possible fingerprints
    frames       names of the frames that it wrote, with their times in ms
    mask         the summary's entry of its masks
    complete     whether it reached its end
    has_summary  whether its summary exists
    interrupted  whether its journal exists: it was killed before, or right after, its summary was
                 written
    """

    folder: Path
    files: dict[str, set[Fingerprint]] = field(default_factory=dict)
    frames: dict[str, float] = field(default_factory=dict)
    mask: dict[str, Any] | None = None
    complete: bool = False
    has_summary: bool = False
    interrupted: bool = False

    def add(self, name: str, known: Fingerprint) -> None:
        self.files.setdefault(name, set()).add(known)

    def owns(self, name: str) -> bool:
        """Whether the file of that name was written by the run and not changed since."""
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            return False
        if name == SUMMARY:
            return self.has_summary
        if self.interrupted and (name in (JOURNAL, STATE, OVERLAY) or name in self.leftovers()):
            return True
        known = self.files.get(name, set())
        return path.stat().st_size in {k.size for k in known} and Fingerprint.read(path) in known

    def leftovers(self) -> set[str]:
        """Names of temporary files that a killed run may have left."""
        if not self.interrupted:
            return set()
        scratches = {scratch_of(Path(name)).name for name in (*self.files, *FIXED)}
        return {part_of(Path(OVERLAY)).name, *scratches}


def read_earlier(folder: Path) -> Earlier:
    """Read the results of an earlier run from its folder.

    Raises  OutputError if there is a summary or a journal that no run wrote.
    """
    earlier = Earlier(folder)
    _read_journal(earlier, _read_summary(earlier))
    return earlier


def _read_summary(earlier: Earlier) -> str | None:
    """Read the summary into `earlier`; return the run's id, None if there is no summary."""
    path = earlier.folder / SUMMARY
    if not path.is_file():
        return None
    with _reading(path, "summary"):
        summary = json.loads(path.read_text(encoding="utf-8"))
        frames, times, files = summary["frames"], summary["per_frame_ms"], summary.get("files", {})
        earlier.frames = {_plain_name(n): float(t) for n, t in zip(frames, times, strict=True)}
        for name, known in files.items():
            earlier.add(_plain_name(name), _fingerprint(known))
        earlier.complete = bool(summary["complete"])
        earlier.mask = summary.get("mask")
        identity = summary.get("run")
    earlier.has_summary = True
    return identity if isinstance(identity, str) else None


def _read_journal(earlier: Earlier, finished: str | None) -> None:
    """Read the journal into `earlier`; its frames replace those of a summary of another run.

    An incomplete last line is ignored: its file was not written yet.

    finished  the run's id in the summary; None if there is no summary
    """
    path = earlier.folder / JOURNAL
    if not path.is_file():
        return
    with _reading(path, "journal"):
        text = path.read_text(encoding="utf-8")
        header, *lines = [json.loads(line) for line in text.split("\n")[:-1]]
        if not isinstance(header["run"], str):
            raise TypeError("a run has no name")
        earlier.interrupted = True
        if header["run"] == finished:  # killed right after the summary, which is up to date
            return
        earlier.complete, earlier.frames, earlier.mask = False, {}, header.get("mask")
        for line in lines:
            if "file" in line:
                earlier.add(_plain_name(line["file"]), _fingerprint(line))
            if "frame" in line:
                name = _plain_name(line["frame"])
                earlier.frames.pop(name, None)
                earlier.frames[name] = float(line["ms"])


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Raise OutputError for a file that no run wrote, or that cannot be read within the block."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path}: is no {kind} that a run wrote ({type(error).__name__}: {error}); move it "
            "away or choose another folder"
        ) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}); move it away") from error


def _plain_name(name: Any) -> str:
    """Check that a name is a plain file name, without a path. Raises ValueError."""
    if not isinstance(name, str) or not name or "\0" in name or Path(name).name != name:
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def _fingerprint(known: Any) -> Fingerprint:
    if not isinstance(known["bytes"], int) or not isinstance(known["sha256"], str):
        raise TypeError("a file has no size and hash")
    return Fingerprint(known["bytes"], known["sha256"])


class Journal:
    """The journal of a run in progress, locked against other runs.

    mask     the summary's entry of the masks, for a later --resume
    earlier  results already in the folder; they stay listed, so that after a kill they can still be
             told from files of the user
    frames   frames of the earlier run that this one continues

    Raises  OutputError if it cannot be written, or another run is writing to the folder.
    """

    def __init__(
        self,
        folder: Path,
        mask: dict[str, Any] | None,
        earlier: Earlier,
        frames: dict[str, float],
    ) -> None:
        self.path = folder / JOURNAL
        self.run = uuid.uuid4().hex
        scratch = scratch_of(self.path)
        try:
            if self.path.exists():
                with self.path.open("rb") as file:
                    _lock(file.fileno(), folder)
            scratch.unlink(missing_ok=True)
            self._file = scratch.open("xb", buffering=0)
            _lock(self._file.fileno(), folder)
            self._file.write(journal_text(self.run, mask, earlier, frames).encode())
            os.replace(scratch, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def frame(self, name: str, ms: float, file: str, known: Fingerprint) -> None:
        """List the mask of a frame, before it is written. Raises OutputError."""
        start = self._file.tell()
        data = (json.dumps({"frame": name, "ms": ms, **_line(file, known)}) + "\n").encode()
        try:
            written = self._file.write(data)
            if written != len(data):  # the disk is full; the next write raises the error
                self._file.write(data[written:])
        except OSError as error:
            self._file.truncate(start)
            self._file.seek(start)
            raise cannot_write(self.path, error) from error

    def close(self, *, finished: bool) -> None:
        """Close the journal; remove it if the run is `finished`, that is, has its summary."""
        if finished:
            self.path.unlink(missing_ok=True)
        self._file.close()


def journal_text(
    run: str, mask: dict[str, Any] | None, earlier: Earlier, frames: dict[str, float]
) -> str:
    """Text of a journal that lists the files of `earlier`, and `frames`."""
    lines: list[dict[str, Any]] = [{"run": run, "mask": mask}]
    for name, known in earlier.files.items():
        lines += [_line(name, fingerprint) for fingerprint in known]
    lines += [{"frame": name, "ms": ms} for name, ms in frames.items()]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _line(name: str, known: Fingerprint) -> dict[str, Any]:
    return {"file": name, "bytes": known.size, "sha256": known.sha256}


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{folder}: another run is writing there; wait for it, or choose another folder"
        ) from error
