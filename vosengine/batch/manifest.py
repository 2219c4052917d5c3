"""Manifests: one clip per line, with its mask, name and options."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..config import WorkingSize, check_working_size, read_working_size
from ..errors import ConfigError, InputError
from .clips import Clip, name_of
from .stores import AnyPath, exists, is_address, open_place

Row = Mapping[str, Any]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("wanted text")
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError("wanted a whole number")
        if not low <= int(value) <= high:
            raise ValueError(f"wanted {low} to {high}")
        return int(value)

    return parse


def _truth(value: Any) -> bool:
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    if isinstance(value, (list, dict)) or value not in known:
        raise ValueError("wanted true or false")
    return known[value]


def _size(value: Any) -> WorkingSize:
    """480, "480x854", "native", or [480, 854]. Raises ConfigError."""
    size = read_working_size("x".join(map(str, value)) if isinstance(value, list) else str(value))
    check_working_size(size)
    return size


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "model": _text,
    "weights": _text,
    "precision": _text,
    "size": _size,
    "memory": _text,
    "max_objects": _whole(1, 255),
    "online": _truth,
    "limit": _whole(1, 1 << 62),
    "mask_void": _truth,
    "threshold": _whole(1, 255),
    "first_masks": _truth,
    "proposals": _text,
}
COLUMNS = ("clip", "mask", "name", *OPTIONS)


def read_manifest(path: AnyPath) -> list[Clip]:
    """Read the clips of a .jsonl or .csv file; its paths are relative to its folder.

    Raises  InputError, naming the line: an unknown column, a missing clip, a value out of range.
    """
    if not exists(path) or path.is_dir():
        raise InputError(f"{path}: no such file; wanted a manifest")
    try:
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
        return [_clip(f"{path}, line {number}", path.parent, row) for number, row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a manifest ({error}); wanted UTF-8") from error


def _csv_rows(path: AnyPath) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="more values than columns", restval="")
        _check_columns(f"{path}, line 1", reader.fieldnames or ())
        for row in reader:
            yield reader.line_num, {k: v for k, v in row.items() if v != ""}


def _json_rows(path: AnyPath) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: wanted an object with a clip, given {line}")
        yield number, {k: v for k, v in row.items() if v is not None}


def _check_columns(where: str, names: Any) -> None:
    unknown = [str(name) for name in names if name not in COLUMNS]
    if unknown:
        raise InputError(
            f"{where}: unknown: {', '.join(unknown)}; wanted among {', '.join(COLUMNS)}"
        )


def _clip(where: str, folder: AnyPath, row: Row) -> Clip:
    _check_columns(where, row)
    for name in ("clip", "mask", "name"):
        if name in row and (not isinstance(row[name], str) or not row[name]):
            raise InputError(f"{where}: {name}: wanted text, given {row[name]!r}")
    if "clip" not in row:
        raise InputError(f"{where}: has no clip; wanted a video, a folder or a pattern of images")
    options = {}
    for name in (option for option in OPTIONS if option in row):
        try:
            options[name] = OPTIONS[name](row[name])
        except ConfigError as error:  # its message names the option and its value
            raise InputError(f"{where}: {error}") from error
        except ValueError as error:
            raise InputError(f"{where}: {name}: {error}; given {row[name]!r}") from error
    source = _resolve(folder, row["clip"])
    stem = source.name if "name" not in row and source.is_dir() else source.stem
    mask = _resolve(folder, row["mask"]) if "mask" in row else None
    return Clip(name_of(row.get("name", stem)), str(source), mask, mask is not None, options)


def _resolve(folder: AnyPath, name: str) -> AnyPath:
    return open_place(name) if is_address(name) else folder / name
