"""Natural order of files, by the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

_WHOLE = re.compile(r"(\d+)")
_DECIMAL = re.compile(r"(\d+(?:\.\d+)?)")
Key = tuple[list[list[str | Decimal]], str]


def in_order(files: Iterable[Path]) -> list[Path]:
    """Sort files in natural order: frame2 before frame10, and 0.25 before 0.5.

    A dot between digits is a decimal point, unless the digits after it are a counter: of different
    lengths, one of them ending in 0 (shot1.9, shot1.10). Folders are compared before names; ties
    are broken by the text.
    """
    files = list(files)
    fractions = {digits for path in files for digits in re.findall(r"\d\.(\d+)", path.stem)}
    counted = len({len(digits) for digits in fractions}) > 1 and any(
        digits.endswith("0") and digits.strip("0") for digits in fractions
    )
    number = _WHOLE if counted else _DECIMAL
    return sorted(files, key=lambda path: _key(path, number))


def _key(path: Path, number: re.Pattern[str]) -> Key:
    parts = [*path.parent.parts, path.stem, path.suffix]
    return [_split(part, number) for part in parts], str(path)


def _split(text: str, number: re.Pattern[str]) -> list[str | Decimal]:
    parts = number.split(text.lower())  # numbers at odd positions: types are never compared
    return [Decimal(part) if i % 2 else part for i, part in enumerate(parts)]
