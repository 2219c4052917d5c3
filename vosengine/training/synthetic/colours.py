"""Random natural palettes: shades of muted anchor colours, with an occasional vivid one."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Palette = NDArray[np.float32]  # [N, 3] RGB in 0..1, N >= 2

ANCHORS: dict[str, tuple[int, int, int]] = {
    "soil": (92, 72, 54), "sand": (196, 174, 136), "clay": (158, 98, 70), "rust": (132, 66, 40),
    "grass": (92, 116, 56), "leaf": (58, 84, 44), "moss": (104, 106, 66), "straw": (188, 164, 98),
    "sky": (150, 182, 210), "haze": (196, 204, 210), "water": (70, 104, 120), "dusk": (96, 88, 120),
    "stone": (128, 124, 118), "asphalt": (72, 74, 78), "concrete": (168, 166, 160),
    "snow": (232, 236, 240), "night": (24, 26, 32), "bark": (74, 60, 50), "wood": (146, 108, 72),
    "brick": (150, 76, 62), "skin": (206, 158, 130), "dark skin": (112, 76, 58),
    "fur": (126, 92, 60), "cream": (226, 212, 182), "denim": (66, 84, 118), "navy": (36, 46, 78),
    "wine": (108, 36, 50), "olive": (98, 96, 58), "steel": (118, 130, 142),
    "petal": (204, 142, 158),
}  # fmt: skip
_ANCHOR_ARRAY = np.array(list(ANCHORS.values()), np.float32) / 255


def draw_palette(rng: np.random.Generator, vivid: float = 0.18) -> Palette:
    """Draw 2 to 5 colours: shades of a base and a second colour; with probability `vivid` one is
    bright."""
    count = int(rng.integers(2, 6))
    bases = _ANCHOR_ARRAY[rng.integers(0, len(_ANCHOR_ARRAY), 2)]
    weight = (rng.random((count, 1)) < 0.3).astype(np.float32)
    blend = bases[0] * (1 - weight) + bases[1] * weight
    colours = np.asarray(cv2.cvtColor(blend[None], cv2.COLOR_RGB2HSV)[0], np.float32)
    colours[:, 0] = (colours[:, 0] + rng.normal(0, 10, count)) % 360
    colours[:, 1] *= rng.uniform(0.5, 1.35, count)
    colours[:, 2] *= np.exp(rng.normal(0, 0.38, count))
    if rng.random() < vivid:
        colours[rng.integers(count)] = rng.uniform((0, 0.55, 0.45), (360, 0.95, 1.0))
    colours[:, 1:] = np.clip(colours[:, 1:], 0, 1)
    return np.asarray(cv2.cvtColor(colours[None], cv2.COLOR_HSV2RGB)[0], np.float32).clip(0, 1)


def vary_palette(rng: np.random.Generator, palette: Palette, amount: float = 0.1) -> Palette:
    """Vary a palette slightly, for look-alikes and camouflage."""
    gains = np.exp(rng.normal(0, amount, (1, 3)))
    return np.asarray(np.clip(palette * gains, 0, 1), np.float32)


def colour_ramp(rng: np.random.Generator, palette: Palette) -> NDArray[np.uint8]:
    """Colour table [256, 3] for texture values, with smooth or stepped transitions."""
    stops = np.sort(rng.random(len(palette)))
    stops = (stops - stops[0]) / max(stops[-1] - stops[0], 1e-6)
    values = np.linspace(0, 1, 256)
    if rng.random() < 0.3:
        nearest = np.abs(values[:, None] - stops).argmin(axis=1)
        # Blurred steps: hard ones alias in the texture.
        ramp = cv2.blur(palette[nearest], (1, 9), borderType=cv2.BORDER_REPLICATE)
    else:
        ramp = np.stack([np.interp(values, stops, palette[:, c]) for c in range(3)], axis=1)
    return np.asarray(ramp * 255 + 0.5, np.uint8)
