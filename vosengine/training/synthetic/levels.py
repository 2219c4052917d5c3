"""Levels of difficulty: from one thing after another to everything at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .clips import Clip, make_clip
from .config import ClipConfig, Effects
from .shapes import CONTOURS

GENERATOR = 2  # raised when the same seed gives other clips: caches of the old ones are refused
ALL_OPEN = 1.0  # share of the training after which every level is drawn from
_PACE = 2  # a stream of random numbers beside those of the clip itself


@dataclass(frozen=True)
class Level:
    """What clips of one level hold, and how many frame intervals may lie between their frames."""

    config: ClipConfig
    steps: tuple[int, ...]


SHAPES = tuple(CONTOURS)  # thin sticks too
_USUAL = ClipConfig(
    objects=(1, 4), size=(0.01, 0.3), turning=1.0, leaving=0.15, patchwork=0.4, growth=1.5,
    shapes=SHAPES, effects=Effects(focus=0.4),
)  # fmt: skip
LEVELS: tuple[Level, ...] = (
    Level(
        ClipConfig(
            objects=(1, 3), size=(0.03, 0.25), camera=0.7, clutter=(0, 4), distractors=(0, 1),
            camouflage=0.0, occluders=(0, 0), leaving=0.0, patchwork=0.3,
        ),
        (1, 2, 3),
    ),
    Level(_USUAL, (1, 2, 3, 4)),
    Level(replace(_USUAL, growth=2.5, patchwork=0.5), (2, 3, 5)),
    Level(
        replace(
            ClipConfig.hard(), objects=(1, 6), patchwork=0.5, growth=3.0, shapes=SHAPES,
            effects=Effects(0.7, 0.9, 0.6, 0.3, 10.0, (25, 95), focus=0.6),
        ),
        (1, 2, 3, 4, 6),
    ),
)  # fmt: skip


def open_levels(progress: float) -> int:
    """How many of the levels may be drawn from when `progress` (0..1) of the training is done."""
    return min(len(LEVELS), 1 + int(progress / ALL_OPEN * (len(LEVELS) - 1) + 1e-9))


def check_levels(frames: int, size: tuple[int, int]) -> None:
    """Raises ConfigError where some level has no clips of this length and size."""
    for level in LEVELS:
        level.config.resized(frames, *size)


def make_level_clip(
    level: int, seed: int, frames: int, size: tuple[int, int], labelled: bool = False
) -> Clip:
    """A clip of LEVELS[level] at size (height, width); the same arguments give the same bytes.

    labelled  whether all that looks like an object is one: for models that find objects
              themselves, and cannot know that a distractor, or a shape that lies about, is none
    """
    chosen = LEVELS[level]
    config = chosen.config.resized(frames, *size)
    if labelled:
        config = replace(config, clutter=(0, 0), distractors=(0, 0), occluders=(0, 0))
    step = int(np.random.default_rng((seed, _PACE)).choice(chosen.steps))
    return make_clip(config, seed, step)
