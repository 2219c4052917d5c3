"""Random numbers of training data: a stream for each purpose, seed and number.

What is drawn for one clip does not depend on what was drawn for others, nor on who draws it.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from ..errors import ConfigError, InputError


class Stream(IntEnum):
    """What the numbers are for; never 0, which numpy's seeds do not tell from nothing."""

    SAMPLE = 1  # which clip a source answers with
    CLIP = 2  # what a synthetic clip shows
    FEED = 3  # window and augmentation of a clip
    MIXTURE = 4  # from which source a clip comes
    PHOTOS = 5  # what a clip made of photos shows
    CLICKS = 6  # which square of a photo is clicked on


def generator(stream: Stream, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, stream, number))


def clip_seed(seed: int, number: int) -> int:
    """The seed of synthetic clip `number` among those that share `seed`."""
    state = np.random.SeedSequence((seed, Stream.CLIP, number)).generate_state(1, np.uint64)
    return int(state[0])


def check_seed(seed: int) -> int:
    """`seed` itself. Raises ConfigError where it is negative."""
    if seed < 0:
        raise ConfigError(f"seed: wanted a whole number of at least 0, given {seed}")
    return seed


def check_request(index: int, progress: float) -> None:
    """Raises InputError where no source can answer: a negative index, progress outside 0..1."""
    if index < 0 or not 0 <= progress <= 1:
        raise InputError(
            f"sample: wanted an index of 0 or more and a progress of 0 to 1, given {index} and"
            f" {progress}"
        )
