"""Image effects: shadow, motion blur, lighting, exposure drift, lens blur, noise and JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .actors import Layer, three
from .config import Effects
from .geometry import Window
from .motion import Wander, draw_wander

MAX_BLUR = 41  # maximum length of motion blur in pixels, to limit the cost
Image = NDArray[np.float32]  # [H, W, 3], 0..255


@dataclass(frozen=True)
class Look:
    """Effects of one clip."""

    shadow: float  # darkness, 0..1
    shadow_offset: tuple[int, int]  # x, y in pixels
    shadow_radius: int  # pixels
    shutter: float  # shutter time in frame intervals
    light: NDArray[np.float32] | None  # [H, W, 3] gain
    drift: Wander | None  # 4: log exposure, log gain of each colour
    noise: float  # standard deviation in grey levels
    quality: int | None  # of JPEG; None: not compressed
    focus: float = 0.0  # standard deviation of the lens blur, pixels

    def darken(self, image: Image, layer: Layer) -> None:
        """Darken `image` in place by the layer's soft shadow."""
        if self.shadow == 0:
            return
        radius = self.shadow_radius
        rim = (2 * radius,) * 4
        shade = np.asarray(
            cv2.copyMakeBorder(layer.alpha, *rim, cv2.BORDER_CONSTANT, value=0), np.float32
        )
        for _ in range(2):  # two box blurs make a triangular kernel
            shade = smear_evenly(shade, radius)
        whole = layer.window.grow(2 * radius).shift(*self.shadow_offset)
        seen = whole.clip(_screen(image))
        if not seen.empty:
            image[seen.slices()] *= three(1 - self.shadow * shade[seen.slices(whole)])

    def streak(self, velocity: NDArray[np.float64]) -> NDArray[np.float32] | None:
        """Motion blur kernel [k, k] for a velocity in pixels per frame; None if negligible."""
        step = velocity * self.shutter
        length = float(np.hypot(*step))
        if length < 1.2:
            return None
        step = step * min(1.0, MAX_BLUR / length)
        radius = int(np.ceil(np.abs(step).max() / 2)) + 1
        points = np.linspace(-0.5, 0.5, 4 * radius + 1)[:, None] * step + radius
        kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
        whole = np.floor(points).astype(int)
        for dx in (0, 1):
            for dy in (0, 1):
                near = 1 - np.abs(points - whole - (dx, dy))
                np.add.at(kernel, (whole[:, 1] + dy, whole[:, 0] + dx), near.prod(axis=1))
        return np.asarray(kernel / kernel.sum(), np.float32)

    def develop(self, image: Image, time: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Apply lighting, drift, lens blur, noise and JPEG to a composed image; returns the frame
        [H, W, 3] uint8. `rng` is this frame's."""
        if self.light is not None:
            image = image * self.light
        if self.drift is not None:
            exposure, *gains = self.drift.at(time)
            image = np.asarray(cv2.transform(image, np.diag(np.exp(exposure + np.array(gains)))))
        if self.focus > 0.2:  # negligible below
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), self.focus), np.float32)
        if self.noise > 0:
            # Grey noise: cameras filter colour noise, and it costs a third of the time.
            image = image + three(self.noise * rng.standard_normal(image.shape[:2], np.float32))
        # convertScaleAbs takes the absolute value and saturates.
        frame = np.asarray(cv2.convertScaleAbs(np.maximum(image, 0)), np.uint8)
        if self.quality is not None:
            _, code = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            frame = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
        return frame


def smear(image: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Filter an image with a kernel [k, k], replicating the border."""
    blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def smear_evenly(plane: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Box blur of a plane [H, W]."""
    return np.asarray(cv2.blur(plane, (2 * radius + 1, 2 * radius + 1)), np.float32)


def draw_look(rng: np.random.Generator, frame: tuple[int, int], limits: Effects) -> Look:
    """Draw the effects of one clip for frames of size `frame` (height, width)."""
    height, width = frame
    unit = float(np.sqrt(height * width))
    offset = rng.normal(0, 0.02 * unit, 2)
    grid = rng.uniform(-1, 1, (4, 5)).astype(np.float32)
    contrast = limits.light * rng.random()
    light = None
    if contrast > 0:
        field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        light = three(np.exp(contrast * field))
    quality = int(rng.integers(*limits.jpeg, endpoint=True)) if limits.jpeg else None
    return Look(  # drawn in this order
        shadow=limits.shadow * rng.uniform(0.2, 1) * (rng.random() < 0.7),
        shadow_offset=(int(offset[0]), int(abs(offset[1]))),
        shadow_radius=max(1, int(unit * rng.uniform(0.008, 0.03))),
        shutter=limits.blur * rng.random(),
        light=light,
        noise=limits.noise * rng.random() ** 2,
        quality=quality,
        focus=0.01 * unit * limits.focus * rng.random() ** 2 if limits.focus > 0 else 0.0,
        drift=_draw_drift(rng, limits.drift) if limits.drift > 0 else None,
    )


def _draw_drift(rng: np.random.Generator, most: float) -> Wander:
    spread = most * rng.random() * np.array([1, 0.3, 0.3, 0.3])
    return draw_wander(rng, spread, 0.15 * spread, 4)


def _screen(image: Image) -> Window:
    return Window(0, 0, image.shape[1], image.shape[0])
