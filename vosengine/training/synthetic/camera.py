"""Camera motion: pan, zoom, roll and shake, with parallax and a scrolling background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .geometry import Matrix, about, rotate, scale, translate
from .motion import Wander, draw_wander

BACKGROUND = 0.6  # nearness of layers: factor on pan and zoom
OBJECTS = 1.0
FOREGROUND = 1.4


@dataclass(frozen=True)
class Camera:
    """Map from world to screen pixels over time; the identity at time 0."""

    centre: NDArray[np.float64]  # [2]
    path: Wander  # 8: pan, shake, scroll (x, y in pixels each), log zoom, roll

    def matrix(self, time: float, nearness: float) -> Matrix:
        """World to screen at `time` (frames), for a layer of this nearness."""
        state = self.path.at(time)
        pan, shake, scroll, (zoom, roll) = state.reshape(4, 2)
        shift = nearness * pan + shake
        if nearness == BACKGROUND:  # scrolls as if the camera followed the objects
            shift = shift + scroll
        view = rotate(roll) @ scale(np.exp(np.full(2, nearness * zoom)))
        return translate(shift) @ about(self.centre, view)


def draw_camera(rng: np.random.Generator, frame: tuple[int, int], amount: float) -> Camera:
    """Draw a camera for frames (height, width); `amount` 0 is a tripod, 1 a typical handheld."""
    height, width = frame
    unit = np.sqrt(height * width)
    pace = amount * np.exp(rng.normal(0, 0.6))
    follow = amount * rng.uniform(0.2, 1.6) * (rng.random() < 0.5)
    shaking = 0.004 * amount * rng.uniform(0, 1) ** 3
    reach = np.array([0.12, 0.05, shaking, shaking, 1.2, 0.1, 0.08, 0.03])
    speed = np.array([0.006, 0.003, shaking, shaking, 0.02, 0.003, 0.005, 0.003])
    speed *= (pace, pace, 1, 1, follow, follow, pace, pace)
    in_pixels = np.array([unit] * 6 + [1, 1])
    path = draw_wander(rng, reach * in_pixels, speed * in_pixels, 8)
    return Camera(np.array([width, height]) / 2, path)
