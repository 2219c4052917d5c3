"""Files on disk: there whole or not at all, known again by their hash, and never an input."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .errors import OutputError

CHUNK = 1 << 20


class Fingerprint(NamedTuple):
    """What a file is known again by: its size in bytes and the sha256 of its content."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Fingerprint:
        return cls(len(data), hashlib.sha256(data).hexdigest())

    @classmethod
    def read(cls, path: Path) -> Fingerprint:
        """Of a file on disk. Raises OSError."""
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return cls(size, digest.hexdigest())


def scratch_of(path: Path) -> Path:
    """Where a file is while it is being written: beside the one whose name it takes."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to; what is there at the end of the block takes the name `path`.

    Whatever goes wrong before that, the file that `path` was is still there, and nothing else. A
    link at `path` is replaced, not followed. Raises OutputError in place of an OSError.
    """
    scratch = scratch_of(path)
    try:
        scratch.unlink(missing_ok=True)  # a link there would be followed
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file (text in UTF-8) in place of the one that is there. Raises OutputError."""
    with whole(path) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)


def cannot_write(path: Path, error: Exception) -> OutputError:
    """What is said of a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return OutputError(
        f"{path}: cannot be written ({reason}); check the folder and the free space, or choose "
        "another path"
    )


class Given(NamedTuple):
    """What a command reads: a file, or a folder with what lies in it.

    what  how a message calls it
    tree  of a folder: all that lies beneath it is read, not only what lies directly in it
    """

    what: str
    path: Path
    tree: bool = False

    @classmethod
    def named(cls, what: str, name: str | Path | None, *, tree: bool = False) -> tuple[Given, ...]:
        """The file or folder of that name, if there is one: a name may stand for something else,
        and what is not there cannot be lost."""
        if name is None or not os.path.lexists(name):
            return ()
        return (cls(what, Path(name), tree),)


def keep_apart(given: Iterable[Given], written: Iterable[Path]) -> None:
    """See that nothing that is read would be written over or written into.

    Paths are compared as what they are on disk: through links, by whatever name. A file to be
    written must not be an input, nor lie in a folder that is one, nor be named twice.

    Raises  OutputError, naming both paths.
    """
    targets = _Targets(written)
    for each in given:
        target = targets.clash(each)
        if target is not None:
            raise OutputError(
                f"{target}: would be written over or beside what is read: {each.what} {each.path}; "
                "choose another place for the results"
            )


class _Targets:
    """Files that are going to be written, or removed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, Path] = {}
        self._folders: dict[str, Path] = {}
        self._existing: dict[tuple[int, int], Path] = {}
        parents: dict[Path, str] = {}
        for path in paths:
            parent = parents.get(path.parent)
            if parent is None:
                parent = parents[path.parent] = os.path.realpath(path.parent)
                self._folders[parent] = path
            place = os.path.join(parent, path.name)
            if place in self._places:
                raise OutputError(
                    f"{path} and {self._places[place]}: are one file, wanted one for each result"
                )
            self._places[place] = path
            identity = _identity(place)
            if identity is not None:
                self._existing[identity] = path

    def clash(self, given: Given) -> Path | None:
        """The target by which an input would be lost or joined; None where all is well."""
        real = os.path.realpath(given.path)
        own_place = os.path.join(os.path.realpath(given.path.parent), given.path.name)
        for place in (real, own_place):
            if place in self._places:
                return self._places[place]
        if not os.path.isdir(real):
            identity = _identity(real)
            return None if identity is None else self._existing.get(identity)
        return self._joins(real, given.tree) or self._held(real, given.tree)

    def _joins(self, folder: str, tree: bool) -> Path | None:
        """A target that would lie in that folder."""
        identity = _identity(folder)
        for parent, path in self._folders.items():
            if _identity(parent) == identity or parent == folder:
                return path
            if tree and parent.startswith(os.path.join(folder, "")):
                return path
        return None

    def _held(self, folder: str, tree: bool) -> Path | None:
        """A target that is a file of that folder under another name: a link, of either kind."""
        if not self._existing:
            return None
        for place, folders, files in os.walk(folder):
            for name in files:
                identity = _identity(os.path.join(place, name))
                if identity is not None and identity in self._existing:
                    return self._existing[identity]
            if not tree:
                folders.clear()
        return None


def _identity(path: str) -> tuple[int, int] | None:
    """Device and number of what is there, links followed; None where nothing is."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_output_folder(path: Path) -> None:
    """See that a folder is there or can be made, and takes files; makes nothing.

    Raises  OutputError naming the path and the reason.
    """
    place = Path(os.path.abspath(path))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{place}: is a file, wanted a folder; choose another path than {path}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path}: cannot be written (no permission in {place}); wanted a folder to put results "
            "in, choose another path or free this one"
        )


class Ledger:
    """A file in a folder that lists others there with their fingerprints: those that a command
    wrote, which it may write again.

    Raises  OutputError where there is a file of that name that is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Fingerprint] = {}
        try:
            if path.is_file():
                listed = json.loads(path.read_text(encoding="utf-8"))["files"]
                self._known = {
                    str(n): Fingerprint(known["bytes"], known["sha256"])
                    for n, known in listed.items()
                }
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{path}: is no list of files that a command wrote ({error}); move it away or "
                "choose another folder"
            ) from error

    def check(self, names: Iterable[str]) -> None:
        """See that of these files those that exist are listed, and as they were written.

        Raises  OutputError for one that is not: it would be lost.
        """
        for name in names:
            path = self.path.parent / name
            if not os.path.lexists(path):
                continue
            ours = path.is_file() and not path.is_symlink()
            if not ours or self._known.get(name) != Fingerprint.read(path):
                raise OutputError(
                    f"{path}: is in the way: it would be replaced, but was not written by this "
                    "command, or was changed since; move it away or choose another folder"
                )

    def add(self, names: Iterable[str]) -> None:
        """List these files as they are now. Raises OutputError."""
        self._known |= {name: Fingerprint.read(self.path.parent / name) for name in names}
        files = {n: {"bytes": k.size, "sha256": k.sha256} for n, k in self._known.items()}
        write_whole(self.path, json.dumps({"files": files}, indent=1) + "\n")
