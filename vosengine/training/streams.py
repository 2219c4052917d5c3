"""Random number streams of training data, one per purpose, seed and number.

Draws for one clip are independent of other clips and of the process.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from ..config.checks import check
from ..errors import InputError


class Stream(IntEnum):
    """Purpose of a random stream. Never 0, which numpy's SeedSequence does not tell from absent."""

    SAMPLE = 1  # choice of a source's clip
    CLIP = 2  # content of a synthetic clip
    FEED = 3  # window and augmentation of a clip
    MIXTURE = 4  # choice of the source
    PHOTOS = 5  # content of a clip made of photos
    CLICKS = 6  # choice of a photo's square for click training


def generator(stream: Stream, seed: int, number: int) -> np.random.Generator:
    """Generator for a purpose, seed and number."""
    return np.random.default_rng((seed, stream, number))


def clip_seed(seed: int, number: int) -> int:
    """Seed of synthetic clip `number` of a run with `seed`."""
    state = np.random.SeedSequence((seed, Stream.CLIP, number)).generate_state(1, np.uint64)
    return int(state[0])


def check_seed(seed: int) -> int:
    """Return `seed`. Raises ConfigError if it is negative."""
    check(seed >= 0, "seed", "a whole number of at least 0", seed)
    return seed


def check_request(index: int, progress: float) -> None:
    """Check arguments of `Source.sample`. Raises InputError for a negative index, or progress
    outside 0..1."""
    if index < 0 or not 0 <= progress <= 1:
        raise InputError(
            f"sample: wanted an index of 0 or more and a progress of 0 to 1, given {index} and"
            f" {progress}"
        )
