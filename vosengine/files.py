"""Output files: written atomically, identified by hash, never in place of an input."""

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
    """Identity of a file's content: its size in bytes and its sha256 in hexadecimal."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Fingerprint:
        return cls(len(data), hashlib.sha256(data).hexdigest())

    @classmethod
    def read(cls, path: Path) -> Fingerprint:
        """The fingerprint of a file on disk. Raises OSError."""
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return cls(size, digest.hexdigest())


def scratch_of(path: Path) -> Path:
    """The temporary path that a file is written to, in the same folder as `path`."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Context manager for an atomic write: yields a temporary path, renamed to `path` on success.

    After an error the previous file at `path` is unchanged and the temporary file is removed. A
    link at `path` is replaced, not followed. Raises OutputError in place of an OSError.
    """
    scratch = scratch_of(path)
    try:
        scratch.unlink(missing_ok=True)  # an existing link would be followed
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write or replace a file atomically; text as UTF-8. Raises OutputError."""
    with whole(path) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)


def cannot_write(path: Path, error: Exception) -> OutputError:
    """The OutputError for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return OutputError(
        f"{path}: cannot be written ({reason}); check the folder and the free space, or choose "
        "another path"
    )


class Given(NamedTuple):
    """An input of a command: a file, or a folder and its files.

    what  the input's name in messages
    path  the file or folder
    tree  for a folder: whether it is read recursively
    """

    what: str
    path: Path
    tree: bool = False

    @classmethod
    def named(cls, what: str, name: str | Path | None, *, tree: bool = False) -> tuple[Given, ...]:
        """A tuple with the file or folder of that name; empty if it does not exist.

        A name need not be a path (a camera, an address), and a missing file cannot be overwritten.
        """
        if name is None or not os.path.lexists(name):
            return ()
        return (cls(what, Path(name), tree),)


def keep_apart(inputs: Iterable[Given], outputs: Iterable[Path]) -> None:
    """Check that no output overwrites an input or lies in an input folder.

    Paths are compared by file identity, with links resolved. An output must not be an input, lie
    in an input folder, or be listed twice.

    Raises  OutputError, naming both paths.
    """
    targets = _Targets(outputs)
    for source in inputs:
        target = targets.clash(source)
        if target is not None:
            raise OutputError(
                f"{target}: would overwrite an input or be written beside it: {source.what} "
                f"{source.path}; choose another place for the results"
            )


class _Targets:
    """Files that are going to be written or removed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, Path] = {}  # target by real path
        self._folders: dict[str, Path] = {}  # one target by real path of its folder
        self._existing: dict[tuple[int, int], Path] = {}  # target by device and inode
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
                    "; choose another path"
                )
            self._places[place] = path
            identity = _identity(place)
            if identity is not None:
                self._existing[identity] = path

    def clash(self, source: Given) -> Path | None:
        """The target that would overwrite an input or lie in its folder, or None."""
        real = os.path.realpath(source.path)
        own_place = os.path.join(os.path.realpath(source.path.parent), source.path.name)
        for place in (real, own_place):
            if place in self._places:
                return self._places[place]
        if not os.path.isdir(real):
            identity = _identity(real)
            return None if identity is None else self._existing.get(identity)
        return self._target_in(real, source.tree) or self._linked_target(real, source.tree)

    def _target_in(self, folder: str, tree: bool) -> Path | None:
        """A target that lies in the folder, or None."""
        identity = _identity(folder)
        for parent, path in self._folders.items():
            if _identity(parent) == identity or parent == folder:
                return path
            if tree and parent.startswith(os.path.join(folder, "")):
                return path
        return None

    def _linked_target(self, folder: str, tree: bool) -> Path | None:
        """A target that is a file of the folder by a hard or symbolic link, or None."""
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
    """Device and inode number with links resolved; None if the path does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_output_folder(path: Path) -> None:
    """Check that a folder exists and is writable, or can be created; creates nothing.

    Raises  OutputError naming the path and the reason.
    """
    place = Path(os.path.abspath(path))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{place}: is a file, wanted a folder; choose another path than {path}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path}: cannot be written (no permission in {place}); wanted a writable folder; "
            "choose another path or change its permissions"
        )


class Ledger:
    """A JSON file that lists the files of its folder that a command wrote, with fingerprints.

    Listed files may be overwritten by the command as long as they are unchanged.

    Raises  OutputError if a file of that name exists and is not a ledger.
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
        """Check that all of these files that exist are listed and unchanged.

        Raises  OutputError for a file that would be lost.
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
        """Add files, or update their fingerprints, and write the ledger. Raises OutputError."""
        self._known |= {name: Fingerprint.read(self.path.parent / name) for name in names}
        files = {n: {"bytes": k.size, "sha256": k.sha256} for n, k in self._known.items()}
        write_whole(self.path, json.dumps({"files": files}, indent=1) + "\n")
