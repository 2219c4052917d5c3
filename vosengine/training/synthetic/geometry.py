"""Plane geometry: 3x3 matrices of affine maps, and pixel rectangles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]  # [3, 3], maps column vectors x, y, 1
Points = NDArray[np.float64]  # [N, 2] x, y


@dataclass(frozen=True)
class Window:
    """Pixel rectangle x0 <= x < x1, y0 <= y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def empty(self) -> bool:
        return self.x1 <= self.x0 or self.y1 <= self.y0

    def slices(self, origin: Window | None = None) -> tuple[slice, slice]:
        """Row and column slices for an image whose first pixel is `origin`'s corner (or 0, 0)."""
        x, y = (origin.x0, origin.y0) if origin else (0, 0)
        return slice(self.y0 - y, self.y1 - y), slice(self.x0 - x, self.x1 - x)

    def clip(self, other: Window) -> Window:
        """Intersection; may be empty."""
        return Window(
            max(self.x0, other.x0), max(self.y0, other.y0),
            min(self.x1, other.x1), min(self.y1, other.y1),
        )  # fmt: skip

    def join(self, other: Window) -> Window:
        """Smallest window that contains both."""
        return Window(
            min(self.x0, other.x0), min(self.y0, other.y0),
            max(self.x1, other.x1), max(self.y1, other.y1),
        )  # fmt: skip

    def grow(self, margin: int) -> Window:
        return Window(self.x0 - margin, self.y0 - margin, self.x1 + margin, self.y1 + margin)

    def shift(self, dx: int, dy: int) -> Window:
        return Window(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)


def translate(offset: ArrayLike) -> Matrix:
    matrix = np.eye(3)
    matrix[:2, 2] = offset
    return matrix


def scale(factors: ArrayLike) -> Matrix:
    matrix = np.eye(3)
    matrix[[0, 1], [0, 1]] = factors
    return matrix


def rotate(angle: float, shear: float = 0.0) -> Matrix:
    """Rotation by `angle` (radians) after a horizontal shear."""
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    lean = np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1.0]])
    return np.asarray(turn @ lean, np.float64)


def invert(matrix: Matrix) -> Matrix:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def about(centre: NDArray[np.float64], matrix: Matrix) -> Matrix:
    """Apply `matrix` about `centre` instead of the origin."""
    return translate(centre) @ matrix @ translate(-centre)


def transform(matrix: Matrix, points: Points) -> Points:
    """Apply an affine map to points [N, 2]."""
    return np.asarray(points @ matrix[:2, :2].T + matrix[:2, 2], np.float64)


def corners(low: ArrayLike, high: ArrayLike) -> Points:
    """Corners [4, 2] of the rectangle between two opposite corners (x, y)."""
    (x0, y0), (x1, y1) = np.asarray(low), np.asarray(high)
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def window_around(points: Points) -> Window:
    """Smallest window that contains `points`, with a margin of one pixel for interpolation."""
    low, high = np.floor(points.min(axis=0)) - 1, np.ceil(points.max(axis=0)) + 2
    return Window(int(low[0]), int(low[1]), int(high[0]), int(high[1]))
