"""Simulated user: marks an object, then clicks on the errors of a mask."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ...prompts.crop import box_of
from ...prompts.hints import Box
from ...prompts.network import PLANES

JITTER = 0.06  # standard deviation of an inexact box's edges, relative to its sides
OFF = 0.05  # maximum shift and dilation in `spoilt`, relative to the object's longer side
NEAR = 0.5  # minimum distance of a click from the outline, relative to the maximum distance


def next_click(
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    rng: np.random.Generator | None = None,
    made: Sequence[tuple[int, int, bool]] = (),
) -> tuple[int, int, bool] | None:
    """Next click (x, y, positive) of a simulated user (RITM, arXiv 2102.06583); None without
    errors.

    The click is in the wider of the false-negative and false-positive regions, at the pixel
    farthest from its outline, or, with `rng`, at a random one at least NEAR times as far.

    mask, truth  [H, W] bool
    made         previous clicks, whose pixels are not clicked again
    """
    missing, extra = truth & ~mask, mask & ~truth
    inner = [_distances(part) for part in (missing, extra)]
    for x, y, _ in made:
        for distances in inner:
            distances[y, x] = 0
    positive = bool(inner[0].max() >= inner[1].max())
    distances = inner[0] if positive else inner[1]
    furthest = float(distances.max())
    if furthest <= 0:
        return None
    if rng is None:
        pixel = int(distances.argmax())
    else:
        pixel = int(rng.choice(np.flatnonzero(distances >= NEAR * furthest)))
    y, x = divmod(pixel, mask.shape[1])
    return x, y, positive


def _distances(part: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance [H, W] float32 of each pixel in `part` to its outside, which includes the frame's
    outside."""
    padded = np.pad(part, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


class Marks:
    """Marks in one square [H, W] so far.

    planes  attribute: input planes of the network [4, H, W]: previous mask, positive clicks,
            negative clicks, box
    """

    def __init__(self, shape: Sequence[int], radius: int) -> None:
        self.planes = np.zeros((PLANES, *shape), np.float32)
        self.radius = radius
        self.clicks: list[tuple[int, int, bool]] = []

    def click(
        self, mask: NDArray[np.bool_], truth: NDArray[np.bool_], rng: np.random.Generator
    ) -> None:
        """Set the previous mask and add a click on one of its errors."""
        self.planes[0] = mask
        click = next_click(mask, truth, rng, self.clicks)
        if click is not None:
            x, y, positive = click
            self.clicks.append(click)
            cv2.circle(self.planes[1 if positive else 2], (x, y), self.radius, 1.0, cv2.FILLED)

    def box(self, box: Box) -> None:
        """Add a box (x, y, width, height)."""
        x, y, wide, high = box
        self.planes[3, y : y + high, x : x + wide] = 1


def drawn_box(truth: Box, size: int, rng: np.random.Generator) -> Box:
    """Simulate a user's box around an object: exact, or with jittered edges, each half the time."""
    x, y, wide, high = truth
    if rng.random() < 0.5:
        return truth
    left, right = x + rng.normal(0, JITTER * wide), x + wide + rng.normal(0, JITTER * wide)
    top, bottom = y + rng.normal(0, JITTER * high), y + high + rng.normal(0, JITTER * high)
    edges = [int(np.clip(round(edge), 0, size)) for edge in (left, top, right, bottom)]
    return edges[0], edges[1], max(1, edges[2] - edges[0]), max(1, edges[3] - edges[1])


def spoilt(truth: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Corrupt a mask [H, W] like a tracker's: shift, dilate or erode, and perhaps cut out a
    rectangle."""
    x, y, wide, high = box_of(truth.astype(np.uint8))
    reach = max(1, round(OFF * max(wide, high)))
    right, down = rng.integers(-reach, reach + 1, 2)
    shift = np.array([[1, 0, right], [0, 1, down]], np.float32)
    mask = cv2.warpAffine(truth.astype(np.uint8), shift, truth.shape[::-1], flags=cv2.INTER_NEAREST)
    width = 2 * int(rng.integers(0, reach + 1)) + 1
    change = cv2.dilate if rng.random() < 0.5 else cv2.erode
    mask = change(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    if rng.random() < 0.5:
        left, top = x + int(rng.uniform(0, 0.8) * wide), y + int(rng.uniform(0, 0.8) * high)
        right, bottom = (
            left + int(rng.uniform(0.2, 0.6) * wide),
            top + int(rng.uniform(0.2, 0.6) * high),
        )
        mask[top:bottom, left:right] = 0
    return np.asarray(mask > 0)
