"""Record of a run's files: its journal during the run, its summary afterwards.

summary.json lists every file with its size and hash. journal.jsonl is written as the run goes, each
line before the file that it lists, and removed when the summary is there: where there is a journal,
a run was killed, or is still going on.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
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

    files        what it wrote, and by what each is known
    frames       the names of the frames that it answered, with their times in ms
    mask         what its masks were, as the summary has it
    complete     whether it came to its end
    summed_up    whether its summary is there
    interrupted  whether its journal is there: it did not come so far as to write the summary, or
                 just so
    """

    folder: Path
    files: dict[str, set[Fingerprint]] = field(default_factory=dict)
    frames: dict[str, float] = field(default_factory=dict)
    mask: dict[str, Any] | None = None
    complete: bool = False
    summed_up: bool = False
    interrupted: bool = False

    def add(self, name: str, known: Fingerprint) -> None:
        self.files.setdefault(name, set()).add(known)

    def owns(self, name: str) -> bool:
        """Whether what is there by that name is the run's, and as it was written."""
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            return False
        if name == SUMMARY:
            return self.summed_up
        if self.interrupted and (name in (JOURNAL, STATE, OVERLAY) or name in self.leftovers()):
            return True
        known = self.files.get(name, set())
        return path.stat().st_size in {k.size for k in known} and Fingerprint.read(path) in known

    def leftovers(self) -> set[str]:
        """Names under which a killed run may have left what it was writing."""
        if not self.interrupted:
            return set()
        scratches = {scratch_of(Path(name)).name for name in (*self.files, *FIXED)}
        return {part_of(Path(OVERLAY)).name, *scratches}


def read_earlier(folder: Path) -> Earlier:
    """Read the results of an earlier run from its folder.

    Raises  OutputError where a summary or a journal is there that no run wrote.
    """
    earlier = Earlier(folder)
    identity = _read_summary(earlier)
    header, lines = _read_journal(folder / JOURNAL)
    if header is None:
        return earlier
    earlier.interrupted = True
    if identity == header["run"]:  # killed after the summary: that is the last word
        return earlier
    earlier.complete, earlier.frames, earlier.mask = False, {}, header.get("mask")
    for line in lines:
        if "file" in line:
            earlier.add(line["file"], Fingerprint(line["bytes"], line["sha256"]))
        if "frame" in line:
            earlier.frames.pop(line["frame"], None)
            earlier.frames[line["frame"]] = line["ms"]
    return earlier


def _read_summary(earlier: Earlier) -> str | None:
    """Take over what the summary says; the run's identity, None without a summary."""
    path = earlier.folder / SUMMARY
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        frames, times, files = summary["frames"], summary["per_frame_ms"], summary.get("files", {})
        earlier.frames = {_plain(n): float(t) for n, t in zip(frames, times, strict=True)}
        for name, known in files.items():
            earlier.add(_plain(name), _fingerprint(known))
        earlier.complete = bool(summary["complete"])
        earlier.mask = summary.get("mask")
        identity = summary.get("run")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _foreign(path, "summary", error) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}); move it away") from error
    earlier.summed_up = True
    return identity if isinstance(identity, str) else None


def _read_journal(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The header and the lines of a journal; None without one. The last line may be cut short:
    what it was to list had not been written then."""
    if not path.is_file():
        return None, []
    try:
        text = path.read_text(encoding="utf-8")
        header, *lines = [json.loads(line) for line in text.split("\n")[:-1]]
        if not isinstance(header["run"], str):
            raise TypeError("a run has no name")
        for line in lines:
            if "file" in line:
                _plain(line["file"])
                _fingerprint(line)
            if "frame" in line:
                line["ms"] = float(line["ms"])
                _plain(line["frame"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _foreign(path, "journal", error) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}); move it away") from error
    return header, lines


def _plain(name: Any) -> str:
    """A name of a file in the folder itself, whoever wrote it into a summary."""
    if not isinstance(name, str) or not name or "\0" in name or Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a frame")
    return name


def _fingerprint(known: Any) -> Fingerprint:
    if not isinstance(known["bytes"], int) or not isinstance(known["sha256"], str):
        raise TypeError("a file has no size and hash")
    return Fingerprint(known["bytes"], known["sha256"])


def _foreign(path: Path, kind: str, error: Exception) -> OutputError:
    return OutputError(
        f"{path}: is no {kind} that a run wrote ({type(error).__name__}: {error}); move it away or "
        "choose another folder"
    )


class Journal:
    """The journal of a run that is going on; no other run can have it at the same time.

    mask     what its masks are, for whoever resumes it
    earlier  what is in the folder already and stays listed, so that a run that is killed now can
             still be told from what is the caller's
    frames   those of an earlier run that this one goes on from

    Raises  OutputError where it cannot be written, or another run is writing there.
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
        at = self._file.tell()
        data = (json.dumps({"frame": name, "ms": ms, **_line(file, known)}) + "\n").encode()
        try:
            written = self._file.write(data)
            if written != len(data):  # the disk is full; a further write says so
                self._file.write(data[written:])
        except OSError as error:
            self._file.truncate(at)
            self._file.seek(at)
            raise cannot_write(self.path, error) from error

    def close(self, *, finished: bool) -> None:
        """Let go of it; where the run is `finished`, the summary has taken its place."""
        if finished:
            self.path.unlink(missing_ok=True)
        self._file.close()


def journal_text(
    run: str, mask: dict[str, Any] | None, earlier: Earlier, frames: dict[str, float]
) -> str:
    """A journal of that run from which what is in the folder, and those frames, are known."""
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
