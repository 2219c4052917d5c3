"""Files and folders at addresses (s3://, gs://, http://, memory://): by fsspec, as paths of upath.

What lies on this machine stays a pathlib.Path.
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

# What clients of object stores raise that is no OSError.
_FOREIGN = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)
# They have keys and no folders: to make a folder there would be to make a bucket.
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}


def is_address(text: str | Path) -> bool:
    """Whether it names a file system, as s3://bucket/clips does."""
    return "://" in str(text)


def is_pattern(text: str) -> bool:
    """Whether it has * ? or []; of an http:// address ? is a part."""
    return glob.has_magic(text) and not text.startswith(("http://", "https://"))


def open_place(text: str | Path) -> AnyPath:
    """A path of this machine, or of the file system that an address names.

    Raises  DependencyError where its package is not installed, InputError where nobody knows it,
            StorageError where it refuses to be opened.
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
                f"{text}: {error}; install that package beside vosengine, on every machine that "
                "works on the batch"
            ) from error
        except ValueError as error:
            raise InputError(
                f"{text}: {protocol}:// is no file system that fsspec knows ({error}); wanted a "
                "path, or an address such as s3://bucket/folder"
            ) from error
    return place


@contextmanager
def reaching(place: object) -> Iterator[None]:
    """Within the block what a file system raises is a StorageError that names the place."""
    try:
        yield
    except _troubles() as error:
        raise StorageError(
            f"{place}: cannot be reached, read or written ({type(error).__name__}: {error}); check "
            "the address, the network, the credentials and the room there"
        ) from error


def _troubles() -> tuple[type[BaseException], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _FOREIGN)
    foreign = (getattr(module, name) for module, name in loaded if module is not None)
    return (OSError, asyncio.TimeoutError, *foreign)


def exists(place: AnyPath) -> bool:
    """Whether there is a file or folder. What cannot be reached raises: see `reaching`. (Of http://
    fsspec says the same of what is missing and of what cannot be reached.)"""
    if isinstance(place, Path):
        return place.exists()
    try:
        place.fs.info(place.path)
    except FileNotFoundError:
        return False
    return True


def find_pattern(pattern: str) -> list[AnyPath]:
    """What a pattern with * ? [] ** matches, in no order."""
    if not is_address(pattern):
        return [Path(each) for each in glob.glob(pattern, recursive=True)]
    place: Any = open_place(pattern)
    return [open_place(place.fs.unstrip_protocol(each)) for each in place.fs.glob(place.path)]


def list_files(folder: UPath, kind: str = "file") -> dict[str, dict[str, Any]]:
    """Files directly in a folder, by name, with what fsspec knows of each; none if there is no such
    folder. With the kind "directory", folders."""
    try:
        entries = folder.fs.ls(folder.path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    names = ((entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries)
    return {name: entry for name, entry in names if entry["type"] == kind and name}


def fetch(source: str, folder: Path) -> Path:
    """Bring a file, the images and masks of a folder, or what a pattern matches to a folder of this
    machine, under the same names.

    returns  the file, the folder or the pattern there

    Raises  InputError where there is nothing of that name; StorageError.
    """
    place: Any = open_place(source)
    target: Path
    with reaching(source):
        try:
            if is_pattern(source):
                found, target = place.fs.glob(place.path), folder / str(place.name)
            elif place.is_dir():
                found = [each["name"] for each in list_files(place).values()]
                target = folder / str(place.name)
                folder = target
            else:
                found, target = [place.path], folder / str(place.name)
            if not found:
                raise FileNotFoundError("it is empty")
            fetch_files(place, found, folder)
        except FileNotFoundError as error:
            raise InputError(
                f"{source}: cannot be fetched ({error or 'not found'}); wanted a file or folder "
                "that is there"
            ) from error
    return target


def fetch_files(place: UPath, remote: Sequence[str], folder: Path) -> None:
    """Files of a file system, by their paths there, into a folder of this machine. Raises OSError
    and what else that file system raises."""
    folder.mkdir(parents=True, exist_ok=True)
    local = [str(folder / each.rpartition("/")[2]) for each in remote]
    place.fs.get(list(remote), local)


def send(files: Mapping[Path, str], folder: UPath) -> None:
    """Files of this machine into a folder there, several at a time, under the names given; one that
    is there is replaced."""
    make_folder(folder)
    if files:
        targets = [(folder / name).path for name in files.values()]
        folder.fs.put([str(path) for path in files], targets)


def send_whole(path: Path, target: UPath) -> None:
    """A file of this machine to a place there; it appears whole or not at all."""
    with path.open("rb") as file:
        _write(target, iter(lambda: file.read(1 << 20), b""))


def write_whole(target: UPath, data: bytes | str) -> None:
    """A file there, text in UTF-8, which appears whole or not at all."""
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
    """Files of a folder there; those that are not there are gone already."""
    for name in names:
        try:
            folder.fs.rm_file((folder / name).path)
        except FileNotFoundError:
            continue


def drop_folder(folder: UPath) -> None:
    """An empty folder, where the file system has folders."""
    if folder.protocol not in _WITHOUT_FOLDERS:
        try:
            folder.fs.rmdir(folder.path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # somebody put something there: it stays
                raise
