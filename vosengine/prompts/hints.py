"""Hints: checked interactive prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Box = tuple[int, int, int, int]  # x, y of the upper left pixel, width and height, in pixels
Point = tuple[int, int, bool]  # x, y in pixels; True: object, False: background
Pixels = NDArray[np.uint8]

OBJECT, BACKGROUND = 1, 2  # values in scribbles
SMALLEST_FRAME = 8  # minimum side of a frame in pixels


@dataclass(frozen=True)
class Hints:
    """Checked prompts for one object in a frame; at least one of them marks the object.

    size       (height, width) of the frame
    box        contains the object, or None
    points     clicks, in order
    scribbles  uint8 [H, W]: 0 unmarked, OBJECT, BACKGROUND; None if all 0
    previous   uint8 [H, W] 0 or 1: the mask to correct; None if all 0
    """

    size: tuple[int, int]
    box: Box | None
    points: tuple[Point, ...]
    scribbles: Pixels | None
    previous: Pixels | None


def check_hints(
    frame: object,
    box: object,
    points: Sequence[object],
    scribbles: object,
    previous: object,
) -> Hints:
    """Check `mask_from`'s arguments. Raises InputError."""
    size = _check_frame(frame)
    checked_box = None if box is None else _check_box(box, size)
    checked_points = tuple(_check_point(point, size) for point in points)
    marks = _check_plane("scribbles", scribbles, size, BACKGROUND)
    mask = _check_plane("previous", previous, size, 1)
    if checked_box is None and not checked_points and marks is None:
        raise InputError(
            "prompt: nothing is marked; wanted a box, a point or a scribble (a previous mask alone "
            "is not enough)"
        )
    scribbled = marks is not None and bool((marks == OBJECT).any())
    positive = any(point[2] for point in checked_points)
    if checked_box is None and mask is None and not positive and not scribbled:
        raise InputError(
            "prompt: only background is marked; wanted a box, or a point or a scribble on the "
            "object, or the previous mask"
        )
    return Hints(size, checked_box, checked_points, marks, mask)


def _check_frame(frame: object) -> tuple[int, int]:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        kind = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"frame: wanted a uint8 array [H, W, 3], given {kind}")
    if frame.ndim != 3 or frame.shape[2] != 3 or min(frame.shape[:2]) < SMALLEST_FRAME:
        raise InputError(
            f"frame: wanted [H, W, 3] with sides of at least {SMALLEST_FRAME}, given "
            f"{list(frame.shape)}"
        )
    return int(frame.shape[0]), int(frame.shape[1])


def _whole_numbers(values: object, count: int) -> list[int] | None:
    """The values as ints; None unless they are `count` integers."""
    if not isinstance(values, Sequence | np.ndarray) or len(values) != count:
        return None
    if any(isinstance(v, bool | np.bool_) or not isinstance(v, Integral) for v in values):
        return None
    return [int(value) for value in values]


def _check_box(box: object, size: tuple[int, int]) -> Box:
    height, width = size
    numbers = _whole_numbers(box, 4)
    if numbers is None:
        raise InputError(f"box: wanted four whole numbers x, y, width, height, given {box!r}")
    x, y, wide, high = numbers
    if wide < 1 or high < 1:
        raise InputError(f"box: wanted a width and a height of at least 1, given {wide} x {high}")
    if x < 0 or y < 0 or x + wide > width or y + high > height:
        raise InputError(
            f"box: x {x}..{x + wide}, y {y}..{y + high} leaves the frame of {width} x {height} "
            "(width x height); cut it off at the frame's border"
        )
    return x, y, wide, high


def _check_point(point: object, size: tuple[int, int]) -> Point:
    height, width = size
    parts = point if isinstance(point, Sequence | np.ndarray) and len(point) == 3 else None
    numbers = None if parts is None else _whole_numbers(parts[:2], 2)
    if parts is None or numbers is None or not isinstance(parts[2], bool | np.bool_):
        raise InputError(
            f"points: wanted x, y as whole numbers and True or False each, given {point!r}"
        )
    x, y = numbers
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(
            f"points: {x}, {y} lies outside the frame of {width} x {height} (width x height)"
        )
    return x, y, bool(parts[2])


def _check_plane(name: str, plane: object, size: tuple[int, int], most: int) -> Pixels | None:
    """Check a plane uint8 or bool [H, W] with values 0..most; None if all are 0."""
    if plane is None:
        return None
    if not isinstance(plane, np.ndarray) or plane.dtype not in (np.uint8, np.bool_):
        kind = plane.dtype if isinstance(plane, np.ndarray) else type(plane).__name__
        raise InputError(f"{name}: wanted a uint8 array [H, W], given {kind}")
    if plane.shape != size:
        raise InputError(
            f"{name}: wanted the frame's size {list(size)} (height, width), given "
            f"{list(plane.shape)}"
        )
    values = plane.astype(np.uint8)
    if values.max() > most:
        raise InputError(f"{name}: wanted values 0 to {most}, given up to {values.max()}")
    return values if values.any() else None
