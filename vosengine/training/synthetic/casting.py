"""Random background, objects, distractors and occluders of a clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .actors import Actor, draw_parts
from .camera import FOREGROUND, OBJECTS
from .colours import Palette, draw_palette, vary_palette
from .config import ClipConfig
from .motion import draw_bending, draw_trajectory, draw_wander
from .shapes import (
    CONTOURS,
    Limb,
    bar,
    draw_figure,
    fit_to_box,
    rasterise,
    silhouette,
)
from .textures import paint

_OVERSIZE = 1.3  # side of the background sheet relative to the frame's
_MIN_AREA, _MIN_SHARE = 48, 0.008  # minimum area of objects, in pixels and relative to the frame


def paint_background(
    rng: np.random.Generator, config: ClipConfig
) -> tuple[NDArray[np.uint8], list[Palette]]:
    """Paint the background sheet [h, w, 3] with clutter; also returns its palettes."""
    height, width = int(config.height * _OVERSIZE), int(config.width * _OVERSIZE)
    palettes = [draw_palette(rng, vivid=0.03) for _ in range(3)]
    sheet = paint(rng, height, width, config.textures, palettes, mixing=0.7)
    for _ in range(rng.integers(*config.clutter, endpoint=True)):
        size = np.sqrt(height * width) * np.exp(rng.uniform(np.log(0.04), np.log(0.2)))
        contour = CONTOURS[config.shapes[int(rng.integers(len(config.shapes)))]](rng) * size
        contour = contour - contour.min(axis=0) + 1
        extent = np.ceil(contour.max(axis=0)).astype(int) + 1
        w, h = np.minimum(extent, (width, height)).tolist()
        x, y = (int(rng.integers(0, limit + 1)) for limit in (width - w, height - h))
        alpha = rasterise([contour], h, w)[..., None].astype(np.float32) / 255
        own = [draw_palette(rng), *palettes]
        patch = paint(rng, h, w, config.textures, own, mixing=0.2)
        behind = sheet[y : y + h, x : x + w]
        behind[:] = (behind + alpha * (patch.astype(np.float32) - behind)).astype(np.uint8)
    return sheet, palettes


def draw_cast(
    rng: np.random.Generator, config: ClipConfig, backdrop: list[Palette]
) -> tuple[Actor, ...]:
    """Draw objects (labels 1..N), distractors and occluders (label 0), all placed at the centre."""
    count = int(rng.integers(*config.objects, endpoint=True))
    objects = [_draw_actor(rng, config, backdrop, label) for label in range(1, count + 1)]
    others = []
    for _ in range(rng.integers(*config.distractors, endpoint=True)):
        if rng.random() < config.look_alikes:
            model = objects[rng.integers(count)]
            gains = np.exp(rng.normal(0, rng.choice([0.0, 0.05, 0.3]), 3))
            others.append(_look_alike(rng, config, model.recoloured(gains)))
        else:
            others.append(_draw_actor(rng, config, backdrop, 0))
    for _ in range(rng.integers(*config.occluders, endpoint=True)):
        others.append(_draw_occluder(rng, config))
    return tuple(objects + others)


def _draw_actor(
    rng: np.random.Generator, config: ClipConfig, backdrop: list[Palette], label: int
) -> Actor:
    limbs = draw_figure(rng, config.shapes, config.parts, config.holes)
    share = float(np.exp(rng.uniform(*np.log(config.size))))
    pixels = config.height * config.width
    area = max(share * pixels, _MIN_AREA, _MIN_SHARE * pixels)
    covered = 4 * float((silhouette(limbs, 64) > 127).mean())
    size = min(np.sqrt(area / covered), 0.6 * max(config.height, config.width))
    palettes = [draw_palette(rng) for _ in range(2)]
    if rng.random() < config.camouflage:
        palettes = [vary_palette(rng, palette) for palette in backdrop]
    elif config.patchwork and rng.random() < config.patchwork:
        palettes = [draw_palette(rng) for _ in range(2 + len(limbs))]
    return _make_actor(rng, config, limbs, size, palettes, label)


def _draw_occluder(rng: np.random.Generator, config: ClipConfig) -> Actor:
    limbs = fit_to_box([Limb(bar(rng), (), -1, np.zeros(2), behind=False)])
    size = rng.uniform(0.3, 0.8) * max(config.height, config.width)
    rigid = replace(config, deformation=0.3 * config.deformation, turning=0.0, leaving=0.0)
    actor = _make_actor(rng, rigid, limbs, size, [draw_palette(rng)], 0)
    return replace(actor, nearness=FOREGROUND)


def _make_actor(
    rng: np.random.Generator, config: ClipConfig, limbs: tuple[Limb, ...], size: float,
    palettes: list[Palette], label: int,
) -> Actor:  # fmt: skip
    pace = config.turning * rng.random()
    turning = draw_wander(rng, 1.0, 0.04 * pace, 1) if pace and rng.random() < 0.5 else None
    parts = draw_parts(
        rng, limbs, size, config.textures, palettes, config.articulation, turning, config.shading
    )
    frame = (config.height, config.width)
    trajectory = draw_trajectory(rng, frame, size, config.motion, config.leaving, config.growth)
    bending = draw_bending(rng, config.deformation)
    return Actor(label, parts, trajectory, bending, OBJECTS)


def _look_alike(rng: np.random.Generator, config: ClipConfig, model: Actor) -> Actor:
    """Copy of `model` without its label, with another path and size."""
    size = float(model.trajectory.size[0] * np.exp(rng.normal(0, 0.15)))
    frame = (config.height, config.width)
    trajectory = draw_trajectory(rng, frame, size, config.motion, config.leaving, config.growth)
    return replace(
        model, label=0, trajectory=trajectory, bending=draw_bending(rng, config.deformation)
    )
