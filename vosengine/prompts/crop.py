"""Crop: the click network's square crop around the hints, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .hints import Box, Hints, Pixels

ENLARGED = 1.4  # side of the crop / longer side of the hints' bounding box (RITM's zoom-in)
LEAST = 48  # minimum side of the crop in pixels of the frame
GREY = 127  # fill beyond the frame; 0 after normalisation


@dataclass(frozen=True)
class Crop:
    """A square region of a frame.

    frame  (height, width)
    x, y   upper left pixel, may lie outside the frame
    side   in pixels of the frame
    """

    frame: tuple[int, int]
    x: int
    y: int
    side: int

    def cut(self, plane: np.ndarray, size: int, fill: int) -> np.ndarray:
        """Crop a frame or plane [H, W, ...] and resize it to [size, size, ...]; `fill` outside."""
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
        """Resize crop values [size, size] into a map of the frame [H, W]; `outside` elsewhere."""
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
        """Position of the frame's pixel x, y in the crop resized to `size` pixels a side."""
        scale = size / self.side
        return int((x - self.x + 0.5) * scale), int((y - self.y + 0.5) * scale)


def square_around(
    box: Box,
    frame: tuple[int, int],
    enlarged: float = ENLARGED,
    shift: tuple[float, float] = (0, 0),
) -> Crop:
    """The square crop around a box, moved inside the frame as far as possible.

    frame     (height, width)
    enlarged  side relative to the box's longer side; limited to the frame's longer side
    shift     shift of the centre, x and y, as a fraction of the side
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
    """Bounding box of the non-zero pixels; 0, 0, 0, 0 if there are none."""
    x, y, wide, high = cv2.boundingRect(mask)
    return int(x), int(y), int(wide), int(high)


def marked_box(hints: Hints) -> Box:
    """Bounding box of all hints; the whole frame without a box or previous mask, as the object's
    size is unknown."""
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
