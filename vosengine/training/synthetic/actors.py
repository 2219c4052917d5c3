"""Actors: figures that move in front of the background, rendered from sprites to layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .colours import Palette
from .geometry import (
    Matrix,
    Window,
    about,
    corners,
    invert,
    rotate,
    scale,
    transform,
    translate,
    window_around,
)
from .motion import GRID_SIDE, Trajectory, Wander, draw_swing
from .shapes import Limb, rasterise
from .textures import paint

_BEND_SPAN = 1.2  # the deformation grid covers -1.2..1.2 of an actor's units
_BEND_CELLS = 40  # resolution of the lookup grid; OpenCV interpolates in 1/32 of a cell


def three(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Repeat a plane: [h, w] -> [h, w, 3]. A copy, because numpy is much slower at multiplying by a
    broadcast axis of 3."""
    return np.asarray(cv2.merge([plane, plane, plane]), np.float32)


@dataclass(frozen=True)
class Layer:
    """An actor rendered for one frame."""

    window: Window
    colour: NDArray[np.float32]  # [h, w, 3] premultiplied by alpha, 0..255 (highlights above)
    alpha: NDArray[np.float32]  # [h, w] 0..1


@dataclass(frozen=True)
class Part:
    """A textured limb; the texture covers the whole sprite, the stencil gives its shape."""

    sheet: NDArray[np.uint8]  # [h, w, 3]
    stencil: NDArray[np.uint8]  # [h, w, 2]: coverage; light (128 is neutral)
    to_sprite: Matrix  # actor's units at rest -> sprite pixels
    parent: int  # index of the parent part, or -1
    joint: NDArray[np.float64]  # [2], in the actor's units
    swing: Wander  # 1: angle about the joint
    slide: Wander | None  # 1: shift of the texture across the stencil, in pixels
    order: float  # parts are drawn in ascending order
    glow: Wander | None = None  # 1: log gain of its light


@dataclass(frozen=True)
class Actor:
    """A moving figure; `label` is its id in the mask, or 0 for a distractor or occluder."""

    label: int
    parts: tuple[Part, ...]
    trajectory: Trajectory
    bending: Wander | None
    nearness: float

    def render(self, view: Matrix, time: float, screen: Window, margin: int = 0) -> Layer | None:
        """Render the actor under camera matrix `view`; None if it is outside `screen`.

        margin  extra pixels on each side of the layer's window, within the screen
        """
        to_screen = view @ self.trajectory.matrix(time)
        poses = self._poses(time)
        grid = _fine_grid(self.bending, time)
        slack = 0.0 if grid is None else float(np.abs(grid).max())
        windows = []
        for part, pose in zip(self.parts, poses, strict=True):
            height, width = part.sheet.shape[:2]
            box = corners((-0.5, -0.5), (width - 0.5, height - 0.5))
            box = transform(pose @ invert(part.to_sprite), box)
            box = corners(box.min(axis=0) - slack, box.max(axis=0) + slack)
            windows.append(window_around(transform(to_screen, box)).clip(screen))
        drawn = sorted((part.order, i) for i, part in enumerate(self.parts) if not windows[i].empty)
        if not drawn:
            return None
        window = windows[drawn[0][1]]
        for _, i in drawn[1:]:
            window = window.join(windows[i])
        window = window.grow(margin).clip(screen)
        colour = np.zeros((window.height, window.width, 3), np.float32)
        alpha = np.zeros((window.height, window.width), np.float32)
        to_actor = invert(to_screen)
        for order, (_, i) in enumerate(drawn):
            place = windows[i].slices(window)
            x, y = _lookup(to_actor, grid, self.parts[i].to_sprite, poses[i], windows[i])
            part_colour, part_alpha = _sample(self.parts[i], x, y, time)
            if order == 0:  # the first part needs no compositing
                if windows[i] == window:
                    colour, alpha = part_colour, part_alpha
                else:
                    colour[place], alpha[place] = part_colour, part_alpha
                continue
            through = 1 - part_alpha
            colour[place] = colour[place] * three(through) + part_colour
            alpha[place] = alpha[place] * through + part_alpha
        return Layer(window, colour, alpha)

    def velocity(self, view: tuple[Matrix, Matrix], time: float) -> NDArray[np.float64]:
        """Velocity [2] in screen pixels per frame; `view`: camera matrices half a frame before and
        after `time`."""
        before, after = (
            transform(matrix, self.trajectory.position(time + step)[None])[0]
            for matrix, step in zip(view, (-0.5, 0.5), strict=True)
        )
        return np.asarray(after - before, np.float64)

    def extent(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest (x, y) of the figure at rest, in the actor's units."""
        boxes = []
        for part in self.parts:
            rows, columns = (np.flatnonzero(part.stencil[..., 0].max(axis=a)) for a in (1, 0))
            if not rows.size:  # a limb of less than a quarter pixel, covered by its hole
                continue
            box = corners((columns[0] - 0.5, rows[0] - 0.5), (columns[-1] + 0.5, rows[-1] + 0.5))
            boxes.append(transform(invert(part.to_sprite), box))
        points = np.concatenate(boxes)
        return points.min(axis=0), points.max(axis=0)

    def recoloured(self, gains: NDArray[np.float64]) -> Actor:
        """Multiply the figure's colours by `gains` [3]."""
        parts = tuple(
            replace(part, sheet=np.clip(part.sheet * gains, 0, 255).astype(np.uint8))
            for part in self.parts
        )
        return replace(self, parts=parts)

    def _poses(self, time: float) -> list[Matrix]:
        """Map from rest to pose per part, in the actor's units."""
        poses: list[Matrix] = []
        for part in self.parts:
            pose = about(part.joint, rotate(float(part.swing.at(time)[0])))
            poses.append(poses[part.parent] @ pose if part.parent >= 0 else pose)
        return poses


def draw_parts(
    rng: np.random.Generator, limbs: Sequence[Limb], size: float, patterns: Sequence[str],
    palettes: Sequence[Palette], articulation: float, turning: Wander | None, shading: float,
) -> tuple[Part, ...]:  # fmt: skip
    """Draw sprites for `limbs` at `size` pixels per unit; `turning` slides textures, in units."""
    light = rng.uniform(-1, 1, 2)
    parts: list[Part] = []
    for limb in limbs:
        low, high = limb.contour.min(axis=0) * size, limb.contour.max(axis=0) * size
        offset = np.floor(low) - 3  # a transparent margin for interpolation
        width, height = (np.ceil(high) + 3 - offset).astype(int).tolist()
        contours = [limb.contour * size - offset, *(hole * size - offset for hole in limb.holes)]
        coverage = rasterise(contours, height, width)
        step = -1.0 if limb.behind else 1.0
        order = parts[limb.parent].order + step / (1 + len(parts)) if limb.parent >= 0 else 0.0
        parts.append(
            Part(
                paint(rng, height, width, patterns, palettes),
                np.dstack([coverage, _shade(coverage, light, shading)]),
                # Contours are relative to pixel corners, sampling to pixel centres.
                translate(-offset - 0.5) @ scale(np.full(2, size)),
                limb.parent,
                limb.joint,
                draw_swing(rng, articulation if limb.parent >= 0 else 0.0),
                turning and replace(turning, amplitude=turning.amplitude * size),
                order,
            )
        )
    return tuple(parts)


def _shade(
    coverage: NDArray[np.uint8], light: NDArray[np.float64], strength: float
) -> NDArray[np.uint8]:
    """Light [h, w] on a rounded relief of the shape; 128 is neutral."""
    height, width = coverage.shape
    relief = coverage.astype(np.float32) / 255
    for reach in (5, 12):
        radius = max(1, min(height, width) // reach)
        relief = np.asarray(cv2.blur(relief, (2 * radius + 1, 2 * radius + 1)), np.float32)
    scale_x, scale_y = width / 6, height / 6
    slope = light[0] * scale_x * cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=0.125)
    slope += light[1] * scale_y * cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=0.125)
    return np.asarray(128 * np.clip(1 + strength * slope, 0.3, 1.9), np.uint8)


def _fine_grid(bending: Wander | None, time: float) -> NDArray[np.float32] | None:
    if bending is None:
        return None
    grid = bending.at(time).reshape(GRID_SIDE, GRID_SIDE, 2).astype(np.float32)
    size = (_BEND_CELLS, _BEND_CELLS)
    return np.asarray(cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC), np.float32)


def _lookup(
    to_actor: Matrix, grid: NDArray[np.float32] | None, to_sprite: Matrix, pose: Matrix,
    window: Window,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
    """Sprite coordinates x and y [h, w] shown by each pixel of `window`."""
    to_actor = to_actor @ translate((window.x0, window.y0))
    unpose = to_sprite @ invert(pose)
    whole = unpose @ to_actor
    columns = np.arange(window.width, dtype=np.float32)
    rows = np.arange(window.height, dtype=np.float32)[:, None]
    x, y = (
        np.float32(row[0]) * columns + (np.float32(row[1]) * rows + np.float32(row[2]))
        for row in whole[:2]
    )
    if grid is not None:
        per_unit = _BEND_CELLS / (2 * _BEND_SPAN)
        to_grid = translate(np.full(2, _BEND_CELLS / 2 - 0.5)) @ scale(np.full(2, per_unit))
        bend = cv2.warpAffine(
            grid, (to_grid @ to_actor)[:2], (window.width, window.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        bend = cv2.transform(bend, unpose[:2, :2])
        x, y = x + bend[..., 0], y + bend[..., 1]
    return x, y


def _sample(
    part: Part, x: NDArray[np.float32], y: NDArray[np.float32], time: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    stencil = cv2.remap(part.stencil, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    if part.slide is not None:
        x = x + np.float32(part.slide.at(time)[0])
    sheet = cv2.remap(part.sheet, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    alpha = stencil[..., 0] * np.float32(1 / 255)
    gain = 1.0 if part.glow is None else float(np.exp(part.glow.at(time)[0]))
    return sheet * three(alpha * stencil[..., 1] * np.float32(gain / 128)), alpha
