"""Procedural textures: scalar patterns, coloured by palettes and blended by masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from .colours import Palette, colour_ramp

Field = NDArray[np.float32]  # [H, W] in 0..1
Pattern = Callable[[np.random.Generator, int, int], Field]


def paint(
    rng: np.random.Generator,
    height: int,
    width: int,
    patterns: Sequence[str],
    palettes: Sequence[Palette],
    mixing: float = 0.5,
) -> NDArray[np.uint8]:
    """Paint a texture [H, W, 3] RGB: one pattern, or with probability `mixing` a blend of two (if
    `patterns` has several)."""
    image = _paint_one(rng, height, width, patterns, palettes)
    if len(patterns) > 1 and rng.random() < mixing:
        other = _paint_one(rng, height, width, patterns, palettes)
        weight = _mixing_mask(rng, height, width)
        image = cv2.blendLinear(image, other, 1 - weight, weight)  # type: ignore[assignment]
    return image


def fractal(
    rng: np.random.Generator, height: int, width: int, cells: float, gain: float = 0.5,
    stretch: float = 1.0,
) -> Field:  # fmt: skip
    """Fractal noise: sum of octaves of smooth noise, scaled to 0..1.

    cells    cells along the longer side in the first octave
    gain     weight of each octave relative to the previous one
    stretch  above 1: horizontal elongation
    """
    longer = max(height, width)
    total = np.zeros((height, width), np.float32)
    weight = 1.0
    while weight > 0.04 and longer / cells >= 1.5:
        rows = int(height * cells / longer) + 2
        columns = int(width * cells / (longer * stretch)) + 2
        grid = rng.standard_normal((rows, columns), np.float32)
        # Cubic interpolation is visible only in coarse octaves.
        mode = cv2.INTER_CUBIC if longer / cells > 6 else cv2.INTER_LINEAR
        total += weight * cv2.resize(grid, (width, height), interpolation=mode)
        weight *= gain
        cells *= 2
    return _to_unit(total)


def noise(rng: np.random.Generator, height: int, width: int) -> Field:
    """Fractal noise of random scale and roughness."""
    cells, gain = np.exp(rng.uniform(np.log(2), np.log(10))), rng.uniform(0.4, 0.85)
    return fractal(rng, height, width, cells, gain)


def streaks(rng: np.random.Generator, height: int, width: int) -> Field:
    """Noise elongated along one axis: water, wood, brushed metal, folds."""
    cells, stretch = rng.uniform(6, 24), rng.uniform(3, 10)
    if rng.random() < 0.5:
        return fractal(rng, height, width, cells, 0.65, stretch)
    return np.ascontiguousarray(fractal(rng, width, height, cells, 0.65, stretch).T)


def ridges(rng: np.random.Generator, height: int, width: int) -> Field:
    """Thin bright veins: the folds of |noise|."""
    folded = np.abs(fractal(rng, height, width, rng.uniform(3, 9), 0.6) - 0.5)
    return np.asarray(1 - np.minimum(folded * rng.uniform(3, 7), 1), np.float32)


def voronoi(rng: np.random.Generator, height: int, width: int) -> Field:
    """Voronoi cells of constant value, some shaded towards the border: stones, scales, patches."""
    count = int(np.exp(rng.uniform(np.log(8), np.log(200))))
    seeds = np.full((height, width), 255, np.uint8)
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = rng.random(count + 1).astype(np.float32)[labels]
    fade = distance * (rng.uniform(0, 0.8) * np.sqrt(count / (height * width)))
    return np.asarray(np.clip(values * (1 - 0.6 * np.minimum(fade, 1)), 0, 1), np.float32)


def stripes(rng: np.random.Generator, height: int, width: int) -> Field:
    """Parallel stripes with soft or sharp edges."""
    wave = np.sin(_slant(rng, height, width) * (2 * np.pi * rng.uniform(3, 22)))
    wave = np.clip(wave * np.exp(rng.uniform(-0.3, 2)), -1, 1)
    return np.asarray(0.5 + 0.5 * wave, np.float32)


def checks(rng: np.random.Generator, height: int, width: int) -> Field:
    """Checkerboard or plaid: two perpendicular waves combined."""
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 12)
    waves = [
        np.sin(_slant(rng, height, width, angle + turn) * (2 * np.pi * count))
        for turn in (0.0, np.pi / 2)
    ]
    product = waves[0] * waves[1] if rng.random() < 0.5 else np.maximum(*waves)
    return np.asarray(0.5 + 0.5 * np.clip(product * rng.uniform(1, 6), -1, 1), np.float32)


def blobs(rng: np.random.Generator, height: int, width: int) -> Field:
    """Overlapping ellipses of random values: foliage, crowds, spots."""
    field = np.full((height, width), rng.random(), np.float32)
    size = max(height, width) * np.exp(rng.uniform(np.log(0.015), np.log(0.12)))
    count = int(min(0.8 * height * width / (size * size), 250))
    centres = rng.uniform((0, 0), (width, height), (count, 2))
    axes = np.maximum(size * np.exp(rng.normal(0, 0.4, (count, 2))), 0.6)
    for centre, axis, angle, value in zip(
        centres, axes, rng.uniform(0, 180, count), rng.random(count), strict=True
    ):
        box = (centre.tolist(), (2 * axis).tolist(), float(angle))
        cv2.ellipse(field, box, float(value), -1)
    return np.asarray(cv2.blur(field, (3, 3)), np.float32)


def lines(rng: np.random.Generator, height: int, width: int) -> Field:
    """Random line segments: twigs, grass, cables."""
    field = np.full((height, width), rng.random(), np.float32)
    count, longer = int(rng.integers(15, 90)), max(height, width)
    starts = rng.uniform((0, 0), (width, height), (count, 2))
    angles = rng.normal(rng.uniform(0, np.pi), rng.uniform(0.1, 1.5), count)
    steps = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.1, 0.6, (count, 1))
    segments = np.stack([starts, starts + steps * longer], 1).astype(int).tolist()
    thickness = rng.integers(1, max(2, longer // 40) + 1, count)
    for (start, end), value, thick in zip(segments, rng.random(count), thickness, strict=True):
        cv2.line(field, start, end, float(value), int(thick))
    return np.asarray(cv2.blur(field, (3, 3)), np.float32)


def gradient(rng: np.random.Generator, height: int, width: int) -> Field:
    """Linear or radial gradient."""
    if rng.random() < 0.6:
        return _to_unit(_slant(rng, height, width))
    centre = rng.uniform(0, 1, 2) * (width, height)
    x, y = np.arange(width) - centre[0], np.arange(height)[:, None] - centre[1]
    return _to_unit(np.sqrt(x * x + y * y).astype(np.float32))


def smooth(rng: np.random.Generator, height: int, width: int) -> Field:
    """Nearly uniform, like a wall or plain cloth."""
    change = fractal(rng, height, width, 1.5, 0.3) - 0.5
    return np.asarray(np.clip(rng.random() + 0.25 * change, 0, 1), np.float32)


def flat(rng: np.random.Generator, height: int, width: int) -> Field:
    """One random value."""
    return np.full((height, width), rng.random(), np.float32)


PATTERNS: dict[str, Pattern] = {
    "noise": noise, "streaks": streaks, "ridges": ridges, "voronoi": voronoi, "stripes": stripes,
    "checks": checks, "blobs": blobs, "lines": lines, "gradient": gradient, "smooth": smooth,
    "flat": flat,
}  # fmt: skip


def _paint_one(
    rng: np.random.Generator, height: int, width: int, patterns: Sequence[str],
    palettes: Sequence[Palette],
) -> NDArray[np.uint8]:  # fmt: skip
    name = patterns[int(rng.integers(len(patterns)))]
    field = PATTERNS[name](rng, height, width)
    if name != "flat":
        if rng.random() < 0.35:
            field = _bend(rng, field)
        # Real surfaces are never uniform: add some low- and high-frequency noise.
        grain = fractal(rng, height, width, rng.uniform(4, 40), 0.7) - 0.5
        field = field + grain * rng.uniform(0.05, 0.4)
    ramp = colour_ramp(rng, palettes[int(rng.integers(len(palettes)))])
    return ramp[(np.clip(field, 0, 1) * 255).astype(np.uint8)]


def _mixing_mask(rng: np.random.Generator, height: int, width: int) -> Field:
    """Blend weight of the second texture: noise patches, or one side of a wavy border."""
    mask = fractal(rng, height, width, rng.uniform(1.5, 6), 0.5)
    if rng.random() < 0.5:
        mask = 0.25 * mask + _to_unit(_slant(rng, height, width, rng.normal(np.pi / 2, 0.4)))
    level = np.quantile(mask[::4, ::4], rng.uniform(0.25, 0.75))
    return np.asarray(np.clip((mask - level) * rng.uniform(3, 60) + 0.5, 0, 1), np.float32)


def _bend(rng: np.random.Generator, field: Field) -> Field:
    """Warp `field` by low-frequency noise."""
    height, width = field.shape
    reach = rng.uniform(0.05, 0.25) * max(height, width)
    x = np.arange(width, dtype=np.float32) + reach * fractal(rng, height, width, 3, 0.3)
    y = np.arange(height, dtype=np.float32)[:, None] + reach * fractal(rng, height, width, 3, 0.3)
    bent = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(bent, np.float32)


def _slant(rng: np.random.Generator, height: int, width: int, angle: float | None = None) -> Field:
    """Position along a direction (random by default), in units of the longer side."""
    angle = rng.uniform(0, np.pi) if angle is None else angle
    x, y = np.cos(angle) * np.arange(width), np.sin(angle) * np.arange(height)
    return np.asarray((x + y[:, None]) / max(height, width), np.float32)


def _to_unit(field: Field) -> Field:
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)
