"""Matching of files to frames, by name or by number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import InputError

BY_NAME, BY_NUMBER = "name", "number"
_LISTED = 5


def match_frames(
    stems: Sequence[str], names: Sequence[str] | None, length: int | None, what: str
) -> tuple[list[int], str]:
    """Frame index of each file, and how they were matched: BY_NAME or BY_NUMBER.

    stems   the files' names without folder and extension
    names   names of all frames, in order; None if frames are only numbered, from 00000
    length  number of frames, or None if unknown; ignored if `names` is given
    what    what the files are called in messages

    Files are matched all by name or else all by number: the one number in which the stems differ
    is compared with the one in which the frame names differ, or with the frame index (from 0) if
    there are no names.

    Raises  InputError, naming the files that match no frame and the names expected.
    """
    if not stems:
        return [], BY_NAME
    places = None if names is None else {name: index for index, name in enumerate(names)}
    by_name = [_named(stem, places, length) for stem in stems]
    if None not in by_name and len(set(by_name)) == len(stems):
        return [index for index in by_name if index is not None], BY_NAME
    by_number = _numbered(stems, names, length)
    if None not in by_number and len(set(by_number)) == len(stems):
        return [index for index in by_number if index is not None], BY_NUMBER
    alone = [stem for stem, index in zip(stems, by_name, strict=True) if index is None]
    unfit = [stem for stem, index in zip(stems, by_number, strict=True) if index is None]
    if len(unfit) < len(alone):
        alone = unfit  # most match by number: report those that do not
    raise InputError(
        f"{what}: {len(alone) or len(stems)} of {len(stems)} match no frame: "
        f"{listed(alone or stems)}; wanted {_wanted(names, length)}"
    )


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The one number in which the names differ; for a single name, its last number.

    None if there is no such number, or a name holds a decimal number.
    """
    if any(re.search(r"\d\.\d", name) for name in names):
        return None
    groups = [re.findall(r"\d+", name) for name in names]
    if not groups or not groups[0] or len({len(group) for group in groups}) > 1:
        return None
    columns = [[int(number) for number in column] for column in zip(*groups, strict=True)]
    differing = [column for column in columns if len(set(column)) > 1]
    if len(differing) > 1 or (not differing and len(names) > 1):
        return None
    return differing[0] if differing else columns[-1]


def listed(names: Sequence[str]) -> str:
    """The first five names joined by commas, and the number of further ones."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _named(stem: str, places: dict[str, int] | None, length: int | None) -> int | None:
    if places is not None:
        return places.get(stem)
    if not re.fullmatch(r"[0-9]{5,}", stem) or stem != f"{int(stem):05d}":
        return None
    return int(stem) if length is None or int(stem) < length else None


def _numbered(
    stems: Sequence[str], names: Sequence[str] | None, length: int | None
) -> list[int | None]:
    numbers = numbers_of(stems)
    if numbers is None:
        return [None] * len(stems)
    if names is None:
        return [number if length is None or number < length else None for number in numbers]
    frame_numbers = numbers_of(names) or []
    places = {number: index for index, number in enumerate(frame_numbers)}
    return [places.get(number) for number in numbers]


def _wanted(names: Sequence[str] | None, length: int | None) -> str:
    if names is not None:
        return f"the names of the {len(names)} frames ({listed(names)}), or their numbers in all"
    last = "" if length is None else f" to {length - 1:05d}"
    return (
        f"the names of the frames (00000{last}), or numbers that all are frame indices, counted "
        "from 0"
    )
