"""Random contours, and jointed figures composed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Contour = NDArray[np.float64]  # [N, 2] x, y; closed; about within -1..1
MIN_FILL = 0.25  # minimum fraction of its bounding box that a figure covers
_SUBPIXEL_BITS = 4


def fourier(rng: np.random.Generator) -> Contour:
    """Radius with a few random harmonics: pebbles to amoebas."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    order = np.arange(1, 7)
    weight = rng.normal(0, 1, (2, 6)) * rng.uniform(0.15, 0.4) / order**0.8
    turns = np.outer(order, angle)
    radius = 1 + weight[0] @ np.cos(turns) + weight[1] @ np.sin(turns)
    return _around(angle, np.maximum(radius, 0.2)) * (1, rng.uniform(0.5, 1))


def ellipse(rng: np.random.Generator) -> Contour:
    """Ellipse of aspect ratio 0.3 to 1."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return _around(angle, np.ones(64)) * (1, rng.uniform(0.3, 1))


def polygon(rng: np.random.Generator) -> Contour:
    """3 to 10 corners at random angles and radii, often star-shaped, sometimes rounded."""
    corners = int(rng.integers(3, 11))
    step = 2 * np.pi / corners
    angle = np.arange(corners) * step + rng.uniform(-0.35, 0.35, corners) * step
    contour = _around(angle, rng.uniform(rng.uniform(0.35, 0.9), 1, corners))
    return _cut_corners(contour, int(rng.integers(0, 4)))


def box(rng: np.random.Generator) -> Contour:
    """Irregular quadrilateral, sometimes with rounded corners."""
    height = rng.uniform(0.3, 1)
    corners = np.array([[-1, -height], [1, -height], [1, height], [-1, height]])
    return _cut_corners(corners + rng.normal(0, 0.08, (4, 2)), int(rng.integers(0, 4)))


def capsule(rng: np.random.Generator) -> Contour:
    """Bent limb of varying thickness: arm, tail, banana, crescent."""
    along = np.linspace(-1, 1, 24)
    bend = rng.uniform(-0.9, 0.9)
    spine = np.stack([along, bend * (along**2 - 0.4) + rng.uniform(-0.3, 0.3) * along**3], axis=1)
    tangent = np.gradient(spine, axis=0)
    normal = tangent[:, ::-1] * (1, -1) / np.linalg.norm(tangent, axis=1, keepdims=True)
    thickness = rng.uniform(0.1, 0.3) * (1 + rng.uniform(-0.6, 0.6) * along)
    thickness *= np.sqrt(np.clip(1 - along**8, 0, 1))
    side = normal * thickness[:, None]
    return np.concatenate([spine + side, (spine - side)[::-1]])


def stick(rng: np.random.Generator) -> Contour:
    """Thin bent rod: leg, cable, handlebar, rein."""
    along = np.linspace(-1, 1, 24)
    height = rng.uniform(-0.5, 0.5) * along**2 + rng.uniform(-0.3, 0.3) * along**3
    width = rng.uniform(0.025, 0.08) * (1 + rng.uniform(-0.5, 0.5) * along)
    upper, lower = height + width, height - width
    return np.concatenate([np.stack([along, upper], 1), np.stack([along, lower], 1)[::-1]])


def bar(rng: np.random.Generator) -> Contour:
    """Long uneven strip, used as an occluder: posts, branches."""
    along = np.linspace(-1, 1, 30)
    width = rng.uniform(0.03, 0.1)
    wobble = np.cumsum(rng.normal(0, 0.12, (2, 30)) * width, axis=1)
    upper, lower = width + wobble[0], -width + 0.7 * wobble[0] + 0.3 * wobble[1]
    return np.concatenate([np.stack([along, upper], 1), np.stack([along, lower], 1)[::-1]])


CONTOURS: dict[str, Callable[[np.random.Generator], Contour]] = {
    "fourier": fourier, "ellipse": ellipse, "polygon": polygon, "box": box, "capsule": capsule,
    "stick": stick,
}  # fmt: skip


@dataclass(frozen=True)
class Limb:
    """Part of a figure at rest, in the figure's coordinates."""

    contour: Contour
    holes: tuple[Contour, ...]
    parent: int  # index of an earlier limb, or -1 for the first
    joint: NDArray[np.float64]  # [2], centre of rotation
    behind: bool  # drawn before its parent


def draw_figure(
    rng: np.random.Generator, shapes: Sequence[str], parts: tuple[int, int], holes: float
) -> tuple[Limb, ...]:
    """Draw the limbs of a figure in -1..1 (longer side) that covers at least MIN_FILL of its box.

    parts  (min, max) number of limbs
    holes  probability of a hole per limb
    """
    for _ in range(8):
        limbs = _draw_limbs(rng, shapes, int(rng.integers(*parts, endpoint=True)), holes)
        if fill_of(limbs) >= MIN_FILL:
            return fit_to_box(limbs)
    # All draws were too thin: a disc is always compact enough.
    disc = _around(np.linspace(0, 2 * np.pi, 64, endpoint=False), np.ones(64))
    return (Limb(disc, (), -1, np.zeros(2), behind=False),)


def fit_to_box(limbs: Sequence[Limb]) -> tuple[Limb, ...]:
    """Translate and scale a figure so that its longer side spans -1..1 and its centre is 0."""
    points = np.concatenate([limb.contour for limb in limbs])
    low, high = points.min(axis=0), points.max(axis=0)
    middle, scale = (low + high) / 2, 2 / float((high - low).max())
    return tuple(
        Limb(
            (limb.contour - middle) * scale,
            tuple((hole - middle) * scale for hole in limb.holes),
            limb.parent,
            (limb.joint - middle) * scale,
            limb.behind,
        )
        for limb in limbs
    )


def fill_of(limbs: Sequence[Limb]) -> float:
    """Fraction of its bounding box that the figure covers, 0..1."""
    return float((silhouette(limbs, 64) > 127).sum()) / _box_area(limbs, 64)


def silhouette(limbs: Sequence[Limb], side: int) -> NDArray[np.uint8]:
    """Coverage [side, side] 0..255 of the union of all limbs, scaled to the canvas."""
    union = np.zeros((side, side), np.uint8)
    for limb in fit_to_box(limbs):
        place = np.array([side / 2, side / 2])
        scale = side / 2
        contours = [limb.contour * scale + place, *(hole * scale + place for hole in limb.holes)]
        union = np.maximum(union, rasterise(contours, side, side))
    return union


def rasterise(contours: Sequence[Contour], height: int, width: int) -> NDArray[np.uint8]:
    """Coverage [H, W] 0..255 of the first contour minus the others, anti-aliased by 4x4 samples."""
    # OpenCV's own anti-aliasing widens a shape by half a pixel.
    canvas = np.zeros((4 * height, 4 * width), np.uint8)
    for index, contour in enumerate(contours):
        # Pixel centres are at integer coordinates in OpenCV, half a pixel from the corner.
        fixed = np.round((4 * contour - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 0 if index else 255, cv2.LINE_8, _SUBPIXEL_BITS)
    return np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _draw_limbs(
    rng: np.random.Generator, shapes: Sequence[str], count: int, holes: float
) -> tuple[Limb, ...]:
    limbs: list[Limb] = []
    for index in range(count):
        contour = CONTOURS[shapes[int(rng.integers(len(shapes)))]](rng)
        hole = _around(np.linspace(0, 2 * np.pi, 24, endpoint=False), np.full(24, 0.22))
        inner = (hole + rng.normal(0, 0.08, 2),) if rng.random() < holes else ()
        if not limbs:
            limbs.append(Limb(contour, inner, -1, np.zeros(2), behind=False))
            continue
        parent = int(rng.integers(index)) if rng.random() < 0.4 else 0
        host = limbs[parent].contour
        joint = host[rng.integers(len(host))]
        outward = joint - host.mean(axis=0)
        angle = np.arctan2(outward[1], outward[0]) + rng.normal(0, 0.5)
        size = rng.uniform(0.3, 0.75) * float(np.ptp(host, axis=0).max()) / 2
        turn = size * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        # The near end overlaps the parent, so that a swing opens no gap.
        shift = joint + np.array([1.0, 0.0]) @ turn * 0.7
        placed = tuple(points @ turn + shift for points in (contour, *inner))
        limbs.append(Limb(placed[0], placed[1:], parent, joint, behind=rng.random() < 0.5))
    return tuple(limbs)


def _box_area(limbs: Sequence[Limb], side: int) -> float:
    extent = np.ptp(np.concatenate([limb.contour for limb in limbs]), axis=0)
    return float(side * side * extent.min() / extent.max())


def _around(angle: NDArray[np.float64], radius: NDArray[np.float64]) -> Contour:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _cut_corners(contour: Contour, rounds: int) -> Contour:
    """Chaikin's subdivision: each round replaces a corner by two at a quarter of its edges."""
    for _ in range(rounds):
        following = np.roll(contour, -1, axis=0)
        pair = np.stack([0.75 * contour + 0.25 * following, 0.25 * contour + 0.75 * following], 1)
        contour = pair.reshape(-1, 2)
    return contour
