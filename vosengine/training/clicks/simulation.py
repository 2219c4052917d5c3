"""A person who marks an object and then clicks on what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from ...prompts.crop import box_of
from ...prompts.hints import Box

JITTER = 0.06  # of a box's sides: standard deviation of how far it is off, where it is off
OFF = 0.05  # of an object's longer side: by how much a spoilt mask's outline is off, at most
NEAR = 0.5  # of the greatest distance from the outline: a click keeps at least that


def next_click(
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    rng: np.random.Generator | None = None,
    made: Sequence[tuple[int, int, bool]] = (),
) -> tuple[int, int, bool] | None:
    """x, y and sign of the click that a person makes next on a mask, both [H, W]; None where
    nothing is wrong.

    In the middle of what is missing or too much, whichever is wider: the pixel farthest from its
    outline, or, with an `rng`, one that is at least half as far (RITM, arXiv 2102.06583).

    made  clicks until now: their pixels are not clicked again
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
        place = int(distances.argmax())
    else:
        place = int(rng.choice(np.flatnonzero(distances >= NEAR * furthest)))
    y, x = divmod(place, mask.shape[1])
    return x, y, positive


def _distances(part: NDArray[np.bool_]) -> NDArray[np.float32]:
    """[H, W] distance of every pixel of a part from what is not; the frame's border is."""
    padded = np.pad(part, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


@dataclass
class Marks:
    """What has been marked in one square so far, as planes of the network [4, H, W]."""

    planes: NDArray[np.float32]
    radius: int
    clicks: list[tuple[int, int, bool]] = field(default_factory=list)

    def click(
        self, mask: NDArray[np.bool_], truth: NDArray[np.bool_], rng: np.random.Generator
    ) -> None:
        """Take in the last mask and a click on what is wrong with it."""
        self.planes[0] = mask
        found = next_click(mask, truth, rng, self.clicks)
        if found is not None:
            x, y, positive = found
            self.clicks.append(found)
            cv2.circle(self.planes[1 if positive else 2], (x, y), self.radius, 1.0, cv2.FILLED)

    def box(self, box: Box) -> None:
        x, y, wide, high = box
        self.planes[3, y : y + high, x : x + wide] = 1


def drawn_box(truth: Box, size: int, rng: np.random.Generator) -> Box:
    """The box that a person draws around an object: exact, or off by a little on every side."""
    x, y, wide, high = truth
    if rng.random() < 0.5:
        return truth
    left, right = x + rng.normal(0, JITTER * wide), x + wide + rng.normal(0, JITTER * wide)
    top, bottom = y + rng.normal(0, JITTER * high), y + high + rng.normal(0, JITTER * high)
    edges = [int(np.clip(round(edge), 0, size)) for edge in (left, top, right, bottom)]
    return edges[0], edges[1], max(1, edges[2] - edges[0]), max(1, edges[3] - edges[1])


def spoilt(truth: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask as a tracker may have left it: moved a little, grown or shrunk, a piece missing."""
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
