"""Generation of clips, frames with exact masks, from a configuration and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...config.checks import check
from .config import ClipConfig
from .scene import draw_scene

Frame = NDArray[np.uint8]  # [H, W, 3] RGB
Mask = NDArray[np.uint8]  # [H, W] object ids, 0 is background
_SCENE, _SENSOR = 0, 1  # independent streams of random numbers


@dataclass(frozen=True)
class Clip:
    """Frames and masks of the visible pixels of objects 1..N; all are visible in frame 0."""

    frames: NDArray[np.uint8]  # [T, H, W, 3] RGB
    masks: NDArray[np.uint8]  # [T, H, W] object ids, 0 is background
    seed: int


def make_clip(config: ClipConfig, seed: int, step: int = 1) -> Clip:
    """Generate a whole clip; deterministic in its arguments.

    The frames are 0, step, 2 * step, ... of a longer clip, `config.frames` in total.

    Raises  ConfigError for an invalid seed or step.
    """
    frames = np.empty((config.frames, config.height, config.width, 3), np.uint8)
    masks = np.empty((config.frames, config.height, config.width), np.uint8)
    for index, (frame, mask) in enumerate(iterate_clip(config, seed, step)):
        frames[index], masks[index] = frame, mask
    return Clip(frames, masks, seed)


def iterate_clip(config: ClipConfig, seed: int, step: int = 1) -> Iterator[tuple[Frame, Mask]]:
    """Iterate over a clip's frames and masks, in constant memory.

    A frame depends on its index, not on the clip's length: a short clip is the beginning of a long
    one with the same seed.

    Raises  ConfigError for an invalid seed or step.
    """
    for name, value, least in (("seed", seed, 0), ("step", step, 1)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        check(whole and value >= least, name, f"a whole number of at least {least}", value)
    return _frames(config, int(seed), int(step))


def _frames(config: ClipConfig, seed: int, step: int) -> Iterator[tuple[Frame, Mask]]:
    scene = draw_scene(_stream(seed, _SCENE), config)
    for time in range(0, config.frames * step, step):
        yield scene.frame(time, _stream(seed, _SENSOR, time))


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
