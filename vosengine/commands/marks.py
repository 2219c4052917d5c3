"""Parse boxes and points of the command line, and make the first frame's mask from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError
from ..prompts import METHODS, Point, mask_from
from ..video import SourceFrame
from .prompts import Prompts

BOX = re.compile(r"(?:(\d+):)?(\d+),(\d+),(\d+),(\d+)")
POINT = re.compile(r"(?:(\d+):)?(\d+),(\d+)(,-)?")
MOST = 255  # object ids


@dataclass(frozen=True)
class MarkedObject:
    """What is marked of one object; its mask in the first frame gets `number`."""

    number: int
    box: tuple[int, int, int, int] | None = None
    points: tuple[Point, ...] = ()


def parse_marks(boxes: Sequence[str], points: Sequence[str]) -> tuple[MarkedObject, ...]:
    """The objects that these words mark, by number.

    boxes   "X,Y,W,H" each, in pixels: objects 1, 2, 3 in that order; or all with their numbers,
            "N:X,Y,W,H"
    points  "X,Y" on the object, "X,Y,-" beside it, of the object of the only box or, without a
            box, of object 1; or "N:X,Y" of object N, which it must be where there are several boxes

    Raises  InputError: other words, a number twice or outside 1..255, boxes of which only some are
            numbered, a point that may be of several boxes.
    """
    found: dict[int, MarkedObject] = {}
    parsed = [_match("box", BOX, "[N:]X,Y,W,H in pixels", word) for word in boxes]
    if len({match[1] is None for match in parsed}) > 1:
        raise InputError("box: only some are numbered; wanted N:X,Y,W,H for all of them or none")
    for place, match in enumerate(parsed):
        number = _number("box", match, place + 1)
        if number in found:
            raise InputError(f"box: object {number} has two boxes; leave one of them out")
        x, y, wide, high = (int(match[part]) for part in range(2, 6))
        found[number] = MarkedObject(number, (x, y, wide, high))
    only = next(iter(found)) if len(found) == 1 else 1
    several = len(found) > 1
    for word in points:
        match = _match("point", POINT, "[N:]X,Y on the object, or [N:]X,Y,- beside it", word)
        if match[1] is None and several:
            raise InputError(
                f"point: {word!r} may be of any of the boxes; wanted N:{word}, N the object"
            )
        number = _number("point", match, only)
        marked = found.get(number, MarkedObject(number))
        point = (int(match[2]), int(match[3]), match[4] is None)
        found[number] = replace(marked, points=(*marked.points, point))
    return tuple(found[number] for number in sorted(found))


def _match(name: str, pattern: re.Pattern[str], wanted: str, word: str) -> re.Match[str]:
    match = pattern.fullmatch(word)
    if match is None:
        raise InputError(f"{name}: wanted {wanted}, given {word!r}")
    return match


def _number(name: str, match: re.Match[str], unnamed: int) -> int:
    number = unnamed if match[1] is None else int(match[1])
    if not 1 <= number <= MOST:
        raise InputError(f"{name}: wanted objects 1 to {MOST}, given {number}")
    return number


class MarkedPrompts(Prompts):
    """The mask of the first frame, made of boxes and points when that frame is there.

    objects  as `parse_marks` gives them, at least one
    method   as `mask_from` takes it

    Raises  ConfigError: an unknown method.
    """

    def __init__(self, objects: Sequence[MarkedObject], method: str = "auto") -> None:
        super().__init__(None)
        if method not in METHODS:
            raise ConfigError(
                f"prompt_method: wanted one of {', '.join(METHODS)}, given {method!r}"
            )
        self._objects, self._method = tuple(objects), method

    @property
    def first_frame(self) -> int | None:
        return 0

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(each.number for each in self._objects)

    def of(self, frame: SourceFrame) -> np.ndarray | None:
        """The mask of the first frame, uint8 [H, W]; where two objects meet, the one of the higher
        number is in front. Raises InputError, naming the object, for marks outside the frame and
        where nothing is found."""
        if frame.index:
            return None
        labels = np.zeros(frame.image.shape[:2], np.uint8)
        for each in self._objects:
            try:
                mask = mask_from(frame.image, box=each.box, points=each.points, method=self._method)
            except InputError as error:
                raise InputError(f"object {each.number}: {error}") from error
            labels[mask > 0] = each.number
        missing = [n for n in self.ids if not (labels == n).any()]
        if missing:
            raise InputError(
                f"object {missing[0]}: nothing of it was found, or all of it lies behind another; "
                "wanted another box, a point on it, or a mask"
            )
        return labels

    def facts(self) -> dict[str, Any] | None:
        marked = [
            {"object": e.number, "box": e.box, "points": [list(p) for p in e.points]}
            for e in self._objects
        ]
        return {"marked": marked, "method": self._method, "first_frame": self.first_frame}
