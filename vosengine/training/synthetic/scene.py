"""Scene of one clip: background, camera and actors, and the rendering of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .actors import Actor, three
from .camera import BACKGROUND, Camera, draw_camera
from .casting import draw_cast, paint_background
from .config import ClipConfig
from .effects import Look, draw_look, smear
from .geometry import Matrix, Window, invert, translate

PLACEMENTS = 12  # random placements tried before objects are placed on a grid
# Minimum visible area of each object in frame 0: pixels, and relative to the frame.
_MIN_AREA, _MIN_SHARE = 30, 0.005
_MIN_SEEN = 0.3  # minimum visible fraction of the object, not guaranteed by the grid


@dataclass(frozen=True)
class Scene:
    """Time-independent description of a clip."""

    screen: Window
    backdrop: NDArray[np.uint8]  # [h, w, 3], mirrored beyond its border
    to_backdrop: Matrix  # pixels of the world -> of the backdrop
    camera: Camera
    cast: tuple[Actor, ...]  # from back to front
    look: Look

    def frame(
        self, time: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Render the frame [H, W, 3] RGB and mask [H, W] of ids; `rng` is for sensor noise only."""
        image = self._background(time)
        mask = np.zeros(image.shape[:2], np.uint8)
        views = {actor.nearness: self._view(time, actor.nearness) for actor in self.cast}
        for actor in self.cast:
            view, around = views[actor.nearness]
            kernel = None
            if self.look.shutter > 0:
                kernel = self.look.streak(actor.velocity(around, time))
            margin = 0 if kernel is None else kernel.shape[0] // 2
            layer = actor.render(view, time, self.screen, margin)
            if layer is None:
                continue
            place = layer.window.slices()
            # The mask is of the layer before blur: the outline at the middle of the exposure.
            mask[place][layer.alpha >= 0.5] = actor.label
            if kernel is not None:
                layer = replace(
                    layer, colour=smear(layer.colour, kernel), alpha=smear(layer.alpha, kernel)
                )
            self.look.darken(image, layer)
            image[place] *= three(1 - layer.alpha)
            image[place] += layer.colour
        return self.look.develop(image, time, rng), mask

    def _background(self, time: int) -> NDArray[np.float32]:
        height, width = self.backdrop.shape[:2]
        view, (before, after) = self._view(time, BACKGROUND)
        source = self.to_backdrop @ invert(view)
        # Reflection has a period of two sheets; the modulus avoids overflow of OpenCV's int16 maps.
        source[:2, 2] %= (2 * width, 2 * height)
        image = cv2.warpAffine(
            self.backdrop, source[:2], (self.screen.width, self.screen.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        middle = np.append(self.camera.centre, 1)
        kernel = self.look.streak(((after - before) @ middle)[:2])
        floating = np.asarray(image, np.float32)
        return floating if kernel is None else smear(floating, kernel)

    def _view(self, time: int, nearness: float) -> tuple[Matrix, tuple[Matrix, Matrix]]:
        """Camera matrix at `time`, and those half a frame before and after."""
        before, now, after = (
            self.camera.matrix(time + step, nearness) for step in (-0.5, 0.0, 0.5)
        )
        return now, (before, after)


def draw_scene(rng: np.random.Generator, config: ClipConfig) -> Scene:
    """Draw a scene; every object is visible in its first frame."""
    frame = (config.height, config.width)
    screen = Window(0, 0, config.width, config.height)
    camera = draw_camera(rng, frame, config.camera)
    backdrop, palettes = paint_background(rng, config)
    spare = (np.array(backdrop.shape[1::-1]) - (screen.width, screen.height)) / 2
    cast = draw_cast(rng, config, palettes)
    placed = place_cast(rng, cast, screen)
    # Drawn last, so that effects do not influence other random draws.
    look = draw_look(rng, frame, config.effects)
    return Scene(screen, backdrop, translate(spare), camera, placed, look)


def place_cast(
    rng: np.random.Generator, cast: Sequence[Actor], screen: Window
) -> tuple[Actor, ...]:
    """Place the cast, in depth order, so that every object is visible in frame 0.

    Tries PLACEMENTS random placements. If all fail (a crowded or tiny frame), objects are stretched
    into the cells of a grid and unlabelled actors are removed. That cannot fail: a figure covers at
    least a quarter of its box, and a cell has over 200 pixels.
    """
    for _ in range(PLACEMENTS):
        placed = _scatter(rng, cast, screen)
        if all_visible(placed, screen):
            return placed
    return _place_on_grid([actor for actor in cast if actor.label], screen)


def all_visible(cast: Sequence[Actor], screen: Window) -> bool:
    """True if enough of each object is visible in frame 0; `cast` is ordered back to front."""
    mask = np.zeros((screen.height, screen.width), np.uint8)
    least = max(_MIN_AREA, _MIN_SHARE * mask.size)
    wanted = {actor.label: least for actor in cast if actor.label}
    for actor in cast:
        layer = actor.render(np.eye(3), 0, screen)
        if layer is None:
            continue
        solid = layer.alpha >= 0.5
        mask[layer.window.slices()][solid] = actor.label
        if actor.label:
            wanted[actor.label] = max(least, _MIN_SEEN * float(np.count_nonzero(solid)))
    areas = np.bincount(mask.ravel(), minlength=256)
    return all(areas[label] >= area for label, area in wanted.items())


def _scatter(rng: np.random.Generator, cast: Sequence[Actor], screen: Window) -> tuple[Actor, ...]:
    extent = np.array([screen.width, screen.height])
    placed = []
    for actor in cast:
        home = extent * rng.uniform(0.12, 0.88, 2)
        path = actor.trajectory.moved(home, rng.uniform(-np.pi, np.pi))
        placed.append(replace(actor, trajectory=path))
    order = rng.permutation(len(placed))
    # A stable sort by nearness: random order within a layer, occluders in front.
    return tuple(sorted((placed[i] for i in order), key=lambda actor: actor.nearness))


def _place_on_grid(objects: Sequence[Actor], screen: Window) -> tuple[Actor, ...]:
    count = len(objects)
    columns = min(count, max(1, round(float(np.sqrt(count * screen.width / screen.height)))))
    rows = -(-count // columns)
    cell = np.array([screen.width / columns, screen.height / rows])
    placed = []
    for index, actor in enumerate(objects):
        home = cell * (index % columns + 0.5, index // columns + 0.5)
        low, high = actor.extent()
        size = 0.9 * cell / (high - low)
        path = actor.trajectory.moved(home - size * (low + high) / 2, 0.0, size)
        placed.append(replace(actor, trajectory=path))
    return tuple(placed)
