"""Several streams of one engine, with narrow networks and moving squares."""

from __future__ import annotations

from typing import Any

import numpy as np
from conftest import tiny_config
from quick_streams import QUICK, quarters

from vosengine import Engine, Segmenter
from vosengine.zoo.registry import entry

SIZES = (48, 64), (64, 48)


def open_engine(model: str, max_batch: int = 1) -> Engine:
    config = tiny_config(model, **QUICK.get(model, {}))
    return Engine(model, config=config, device="cpu", precision="fp32", max_batch=max_batch)


def open_stream(engine: Engine, **options: Any) -> Segmenter:
    if entry(engine.model).build.needs_proposals:
        options = {"proposals": quarters, **options}
    return engine.open(max_objects=8, **options)


def frame_of(number: int, index: int, size: tuple[int, int]) -> np.ndarray:
    """Frame `index` of video `number`: a square that moves over noise."""
    random = np.random.default_rng(number)
    frame = random.integers(0, 120, (*size, 3)).astype(np.uint8)
    top = 4 + (3 * index + number) % (size[0] - 20)
    frame[top : top + 14, 8 + number : 24 + number] = random.integers(130, 255, 3)
    return frame


def mask_of(number: int, index: int, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    top = 4 + (3 * index + number) % (size[0] - 20)
    mask[top : top + 14, 8 + number : 24 + number] = 1 + (number + index) % 3
    return mask
