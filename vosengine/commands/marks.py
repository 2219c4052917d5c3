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
MAX_ID = 255


@dataclass(frozen=True)
class MarkedObject:
    """Box and points of one object; `number` is its object id in the first frame's mask."""

    number: int
    box: tuple[int, int, int, int] | None = None
    points: tuple[Point, ...] = ()


def parse_marks(boxes: Sequence[str], points: Sequence[str]) -> tuple[MarkedObject, ...]:
    """Parse the boxes and points of the command line into objects, sorted by number.

    boxes   "X,Y,W,H" in pixels: objects 1, 2, 3 in this order; or "N:X,Y,W,H" for object N, if all
            boxes have a number
    points  "X,Y" on the object, "X,Y,-" outside it; the object is that of the only box, or object 1
            if there is no box. "N:X,Y" is for object N; with several boxes N is required

    Raises  InputError for other text, for a number that is used twice or outside 1..255, if only
            some boxes have a number, or if a point could belong to several boxes.
    """
    objects: dict[int, MarkedObject] = {}
    parsed = [_match("box", BOX, "[N:]X,Y,W,H in pixels", word) for word in boxes]
    if len({match[1] is None for match in parsed}) > 1:
        raise InputError(
            "box: only some are numbered; wanted N:X,Y,W,H for all of them or for none"
        )
    for place, match in enumerate(parsed):
        number = _number("box", match, place + 1)
        if number in objects:
            raise InputError(f"box: object {number} has two boxes; omit one of them")
        x, y, wide, high = (int(match[part]) for part in range(2, 6))
        objects[number] = MarkedObject(number, (x, y, wide, high))
    only = next(iter(objects)) if len(objects) == 1 else 1
    several = len(objects) > 1
    for word in points:
        match = _match("point", POINT, "[N:]X,Y on the object, or [N:]X,Y,- outside it", word)
        if match[1] is None and several:
            raise InputError(
                f"point: {word!r} could belong to any of the boxes; wanted N:{word} for object N"
            )
        number = _number("point", match, only)
        marked = objects.get(number, MarkedObject(number))
        point = (int(match[2]), int(match[3]), match[4] is None)
        objects[number] = replace(marked, points=(*marked.points, point))
    return tuple(objects[number] for number in sorted(objects))


def _match(name: str, pattern: re.Pattern[str], wanted: str, word: str) -> re.Match[str]:
    match = pattern.fullmatch(word)
    if match is None:
        raise InputError(f"{name}: wanted {wanted}, given {word!r}")
    return match


def _number(name: str, match: re.Match[str], unnamed: int) -> int:
    number = unnamed if match[1] is None else int(match[1])
    if not 1 <= number <= MAX_ID:
        raise InputError(f"{name}: wanted objects 1 to {MAX_ID}, given {number}")
    return number


class MarkedPrompts(Prompts):
    """The mask of the first frame, made from boxes and points once the frame is read.

    objects  from `parse_marks`, at least one
    method   see `mask_from`

    Raises  ConfigError for an unknown method.
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
        return tuple(marked.number for marked in self._objects)

    def of(self, frame: SourceFrame) -> np.ndarray | None:
        """The mask of the first frame, uint8 [H, W]; None for other frames.

        Where objects overlap, the higher number is in front.

        Raises  InputError, naming the object, if a mark is outside the frame or no object is found.
        """
        if frame.index:
            return None
        labels = np.zeros(frame.image.shape[:2], np.uint8)
        for marked in self._objects:
            box, points = marked.box, marked.points
            try:
                mask = mask_from(frame.image, box=box, points=points, method=self._method)
            except InputError as error:
                raise InputError(f"object {marked.number}: {error}") from error
            labels[mask > 0] = marked.number
        missing = [n for n in self.ids if not (labels == n).any()]
        if missing:
            raise InputError(
                f"object {missing[0]}: was not found, or lies completely behind another object; "
                "give another box, a point on it, or a mask"
            )
        return labels

    def facts(self) -> dict[str, Any] | None:
        marked = [
            {"object": m.number, "box": m.box, "points": [list(p) for p in m.points]}
            for m in self._objects
        ]
        return {"marked": marked, "method": self._method, "first_frame": self.first_frame}
