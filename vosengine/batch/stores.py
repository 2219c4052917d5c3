"""Files and folders at addresses (s3://, gs://, http://, memory://), as UPath on fsspec.

Local files stay pathlib.Path.
"""

from __future__ import annotations

import asyncio
import errno
import glob
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import DependencyError, InputError, StorageError

if TYPE_CHECKING:
    from upath import UPath

AnyPath: TypeAlias = "Path | UPath"

# Exceptions of object store clients that are not OSError.
_CLIENT_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)
# Object stores have keys and no folders: makedirs would create a bucket.
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}


def is_address(text: str | Path) -> bool:
    """Whether it is an address such as s3://bucket/clips."""
    return "://" in str(text)


def is_pattern(text: str) -> bool:
    """Whether it has * ? or []. An http:// address is never a pattern: ? begins its query."""
    return glob.has_magic(text) and not text.startswith(("http://", "https://"))


def open_place(text: str | Path) -> AnyPath:
    """A local path, or a path in the file system of an address.

    Raises  DependencyError if the file system's package is not installed, InputError if fsspec does
            not know it, StorageError if it cannot be opened.
    """
    if not is_address(text):
        return Path(text)
    from upath import UPath

    protocol = str(text).partition("://")[0]
    with reaching(text):
        try:
            place = UPath(str(text))
            _ = place.fs  # its package is imported here
        except ImportError as error:
            raise DependencyError(
                f"{text}: {error}; install that package beside vosengine, on every machine of the "
                "batch"
            ) from error
        except ValueError as error:
            raise InputError(
                f"{text}: {protocol}:// is no file system that fsspec knows ({error}); wanted a "
                "path, or an address such as s3://bucket/folder"
            ) from error
    return place


@contextmanager
def reaching(place: object) -> Iterator[None]:
    """Turn errors of a file system within the block into a StorageError that names the place."""
    try:
        yield
    except _error_types() as error:
        raise StorageError(
            f"{place}: cannot be reached, read or written ({type(error).__name__}: {error}); check "
            "the address, the network, the credentials and the free space"
        ) from error


def _error_types() -> tuple[type[BaseException], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _CLIENT_ERRORS)
    client_errors = (getattr(module, name) for module, name in loaded if module is not None)
    return (OSError, asyncio.TimeoutError, *client_errors)


def exists(place: AnyPath) -> bool:
    """Whether a file or folder exists. Raises if the place cannot be reached, see `reaching`; for
    http:// fsspec does not distinguish that from a missing file."""
    if isinstance(place, Path):
        return place.exists()
    try:
        place.fs.info(place.path)
    except FileNotFoundError:
        return False
    return True


def find_pattern(pattern: str) -> list[AnyPath]:
    """Matches of a pattern with * ? [] **, in no particular order."""
    if not is_address(pattern):
        return [Path(match) for match in glob.glob(pattern, recursive=True)]
    place: Any = open_place(pattern)
    return [open_place(place.fs.unstrip_protocol(match)) for match in place.fs.glob(place.path)]


def list_files(folder: UPath, kind: str = "file") -> dict[str, dict[str, Any]]:
    """Files directly in a folder, by name, with fsspec's info of each; empty if there is no such
    folder. kind "directory" lists folders instead."""
    try:
        entries = folder.fs.ls(folder.path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    names = ((entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries)
    return {name: entry for name, entry in names if entry["type"] == kind and name}


def fetch(source: str, folder: Path) -> None:
    """Fetch a file, a folder with its files, or the matches of a pattern into a local folder; names
    are kept.

    Raises  InputError if it does not exist; StorageError if it cannot be reached.
    """
    place: Any = open_place(source)
    with reaching(source):
        try:
            if is_pattern(source):
                paths = place.fs.glob(place.path)
            elif place.is_dir():
                paths = [file["name"] for file in list_files(place).values()]
                folder = folder / str(place.name)
            else:
                paths = [place.path]
            if not paths:
                raise FileNotFoundError("it is empty")
            fetch_files(place, paths, folder)
        except FileNotFoundError as error:
            raise InputError(
                f"{source}: cannot be fetched ({error or 'not found'}); wanted a file or folder "
                "that exists"
            ) from error


def fetch_files(place: UPath, remote: Sequence[str], folder: Path) -> None:
    """Fetch remote files, by their paths, into a local folder. Raises OSError and errors of the
    file system, see `reaching`."""
    folder.mkdir(parents=True, exist_ok=True)
    local = [str(folder / path.rpartition("/")[2]) for path in remote]
    place.fs.get(list(remote), local)


def send(files: Mapping[Path, str], folder: UPath) -> None:
    """Send local files into a remote folder, several at a time, under the given names; existing
    files are replaced."""
    make_folder(folder)
    if files:
        targets = [(folder / name).path for name in files.values()]
        folder.fs.put([str(path) for path in files], targets)


def send_whole(path: Path, target: UPath) -> None:
    """Send a local file atomically: it appears whole or not at all."""
    with path.open("rb") as file:
        _write(target, iter(lambda: file.read(1 << 20), b""))


def write_whole(target: UPath, data: bytes | str) -> None:
    """Write a remote file atomically; text is encoded as UTF-8."""
    _write(target, iter([data.encode() if isinstance(data, str) else data]))


def _write(target: UPath, chunks: Iterator[bytes]) -> None:
    make_folder(target.parent)
    with target.fs.transaction, target.fs.open(target.path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)


def make_folder(folder: UPath) -> None:
    if folder.protocol not in _WITHOUT_FOLDERS:
        folder.fs.makedirs(folder.path, exist_ok=True)


def remove(folder: UPath, names: Sequence[str]) -> None:
    """Remove files of a remote folder; missing files are ignored."""
    for name in names:
        try:
            folder.fs.rm_file((folder / name).path)
        except FileNotFoundError:
            continue


def drop_folder(folder: UPath) -> None:
    """Remove an empty remote folder, if the file system has folders."""
    if folder.protocol not in _WITHOUT_FOLDERS:
        try:
            folder.fs.rmdir(folder.path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # not empty: it has files of others
                raise
