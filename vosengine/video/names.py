"""The order of files by the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

_WHOLE = re.compile(r"(\d+)")
_DECIMAL = re.compile(r"(\d+(?:\.\d+)?)")
Key = tuple[list[list[str | Decimal]], str]


def in_order(files: Iterable[Path]) -> list[Path]:
    """Files as people count: frame2 before frame10, and 0.25 before 0.5.

    A dot between digits is a decimal point, unless the digits after it are counted: of different
    lengths, and one of them ends in 0 (shot1.9, shot1.10). Folders before names, ties by the text.
    """
    files = list(files)
    fractions = {each for path in files for each in re.findall(r"\d\.(\d+)", path.stem)}
    counted = len({len(each) for each in fractions}) > 1 and any(
        each.endswith("0") and each.strip("0") for each in fractions
    )
    number = _WHOLE if counted else _DECIMAL
    return sorted(files, key=lambda path: _key(path, number))


def _key(path: Path, number: re.Pattern[str]) -> Key:
    parts = [*path.parent.parts, path.stem, path.suffix]
    return [_split(part, number) for part in parts], str(path)


def _split(text: str, number: re.Pattern[str]) -> list[str | Decimal]:
    parts = number.split(text.lower())  # odd places hold the numbers, so types never mix
    return [Decimal(part) if i % 2 else part for i, part in enumerate(parts)]
