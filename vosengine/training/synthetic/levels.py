"""Difficulty levels of procedural training clips."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .clips import Clip, make_clip
from .config import ClipConfig, Effects
from .shapes import CONTOURS

GENERATOR = 2  # version, raised when a seed gives other clips; caches of other versions are refused
ALL_OPEN = 1.0  # training progress at which all levels are open
_PACE = 2  # random stream of the frame step


@dataclass(frozen=True)
class Level:
    """Settings of one difficulty level."""

    config: ClipConfig
    steps: tuple[int, ...]  # frame intervals between frames of a clip, one is drawn per clip


SHAPES = tuple(CONTOURS)  # including thin sticks
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
    """Number of levels open at training progress 0..1."""
    return min(len(LEVELS), 1 + int(progress / ALL_OPEN * (len(LEVELS) - 1) + 1e-9))


def check_levels(frames: int, size: tuple[int, int]) -> None:
    """Check that all levels allow this length and size. Raises ConfigError."""
    for level in LEVELS:
        level.config.resized(frames, *size)


def make_level_clip(
    level: int, seed: int, frames: int, size: tuple[int, int], labelled: bool = False
) -> Clip:
    """Make a clip of LEVELS[level] at size (height, width); deterministic in its arguments.

    labelled  no clutter, distractors or occluders: every object is annotated. For models that
              discover objects and cannot tell distractors from objects
    """
    settings = LEVELS[level]
    config = settings.config.resized(frames, *size)
    if labelled:
        config = replace(config, clutter=(0, 0), distractors=(0, 0), occluders=(0, 0))
    step = int(np.random.default_rng((seed, _PACE)).choice(settings.steps))
    return make_clip(config, seed, step)
