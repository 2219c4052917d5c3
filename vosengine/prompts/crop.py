"""The square around what is marked that the click network looks at, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .hints import Box, Hints, Pixels

ENLARGED = 1.4  # side of the square over the longer side of what is marked (RITM's zoom-in)
LEAST = 48  # pixels of the frame: side of the square, at least
GREY = 127  # beyond the frame; 0 to the network


@dataclass(frozen=True)
class Crop:
    """A square of a frame of `frame` (height, width): x, y of its upper left pixel, which may lie
    outside, and its side, in pixels of the frame."""

    frame: tuple[int, int]
    x: int
    y: int
    side: int

    def cut(self, plane: np.ndarray, size: int, fill: int) -> np.ndarray:
        """The square of a frame or plane [H, W, ...] at `size` pixels a side, `fill` where it
        leaves the frame."""
        height, width = self.frame
        left, top = max(0, -self.x), max(0, -self.y)
        right, bottom = max(0, self.x + self.side - width), max(0, self.y + self.side - height)
        rows = slice(self.y + top, self.y + self.side - bottom)
        part = plane[rows, self.x + left : self.x + self.side - right]
        if left or top or right or bottom:
            part = cv2.copyMakeBorder(
                part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(fill,) * 3
            )
        how = cv2.INTER_AREA if self.side > size else cv2.INTER_LINEAR
        return np.ascontiguousarray(cv2.resize(part, (size, size), interpolation=how))

    def paste(self, values: NDArray[np.float32], outside: float) -> NDArray[np.float32]:
        """Values of the square [size, size] as a map of the frame [H, W], `outside` beyond it."""
        height, width = self.frame
        square = cv2.resize(values, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        whole = np.full(self.frame, outside, np.float32)
        rows = slice(max(0, self.y), min(height, self.y + self.side))
        columns = slice(max(0, self.x), min(width, self.x + self.side))
        whole[rows, columns] = square[
            rows.start - self.y : rows.stop - self.y,
            columns.start - self.x : columns.stop - self.x,
        ]
        return whole

    def place(self, x: int, y: int, size: int) -> tuple[int, int]:
        """Where pixel x, y of the frame lies in the square at `size` pixels a side."""
        scale = size / self.side
        return int((x - self.x + 0.5) * scale), int((y - self.y + 0.5) * scale)


def square_around(
    box: Box,
    frame: tuple[int, int],
    enlarged: float = ENLARGED,
    shift: tuple[float, float] = (0, 0),
) -> Crop:
    """The square about a box, moved into the frame as far as it fits.

    frame     (height, width)
    enlarged  its side over the box's longer one; it is never longer than the frame
    shift     of its middle, x and y, in shares of its side
    """
    x, y, wide, high = box
    side = max(round(enlarged * max(wide, high)), LEAST)
    side = min(side, max(frame))
    corner = []
    for low, extent, moved, length in (
        (x, wide, shift[0], frame[1]),
        (y, high, shift[1], frame[0]),
    ):
        start = round(low + extent / 2 + moved * side - side / 2)
        room = length - side
        corner.append(min(max(start, 0), room) if room >= 0 else room // 2)
    return Crop(frame, corner[0], corner[1], side)


def box_of(mask: Pixels) -> Box:
    """The smallest box that holds all that is not 0; 0, 0, 0, 0 where nothing is."""
    x, y, wide, high = cv2.boundingRect(mask)
    return int(x), int(y), int(wide), int(high)


def marked_box(hints: Hints) -> Box:
    """The smallest box that holds the marked object as far as is known, and all points and
    scribbles; without a box and a previous mask the whole frame, for nothing says how large the
    object is."""
    height, width = hints.size
    if hints.box is None and hints.previous is None:
        return 0, 0, width, height
    boxes = [] if hints.box is None else [hints.box]
    if hints.previous is not None:
        boxes.append(box_of(hints.previous))
    if hints.scribbles is not None:
        boxes.append(box_of(hints.scribbles))
    boxes += [(x, y, 1, 1) for x, y, _ in hints.points]
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right = max(b[0] + b[2] for b in boxes)
    bottom = max(b[1] + b[3] for b in boxes)
    return left, top, right - left, bottom - top
