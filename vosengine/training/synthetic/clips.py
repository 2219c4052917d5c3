"""Clips: a configuration and a seed in, frames with exact masks out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from .config import ClipConfig
from .scene import draw_scene

Frame = NDArray[np.uint8]  # [H, W, 3] RGB
Mask = NDArray[np.uint8]  # [H, W] object ids, 0 is background
_SCENE, _SENSOR = 0, 1  # independent streams of random numbers


@dataclass(frozen=True)
class Clip:
    """Frames and the visible pixels of objects 1..N, all of which frame 0 shows."""

    frames: NDArray[np.uint8]  # [T, H, W, 3] RGB
    masks: NDArray[np.uint8]  # [T, H, W] object ids, 0 is background
    seed: int


def make_clip(config: ClipConfig, seed: int, step: int = 1) -> Clip:
    """The whole clip in memory. The same arguments give the same bytes.

    Of every `step` frames the first is kept: the frames are 0, step, 2 * step, ... of a longer
    clip, and `config.frames` of them.
    """
    frames = np.empty((config.frames, config.height, config.width, 3), np.uint8)
    masks = np.empty((config.frames, config.height, config.width), np.uint8)
    for index, (frame, mask) in enumerate(iterate_clip(config, seed, step)):
        frames[index], masks[index] = frame, mask
    return Clip(frames, masks, seed)


def iterate_clip(config: ClipConfig, seed: int, step: int = 1) -> Iterator[tuple[Frame, Mask]]:
    """The clip frame by frame; memory does not grow with its length.

    A frame depends on its index, not on how many are asked for: a short clip is the beginning of
    a long one with the same seed.
    """
    for name, value, least in (("seed", seed, 0), ("step", step, 1)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}: wanted a whole number of at least {least}, got {value!r}")
    return _frames(config, int(seed), int(step))


def _frames(config: ClipConfig, seed: int, step: int) -> Iterator[tuple[Frame, Mask]]:
    scene = draw_scene(_stream(seed, _SCENE), config)
    for time in range(0, config.frames * step, step):
        yield scene.frame(time, _stream(seed, _SENSOR, time))


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
