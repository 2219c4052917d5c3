"""Training clips from a cache written by `synthetic.cache`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from .samples import Sample
from .streams import Stream, check_request, check_seed, generator
from .synthetic.cache import DESCRIPTION, read_description, shard_files
from .synthetic.levels import LEVELS, open_levels


class CachedSource:
    """Source of cached clips, drawn with replacement; harder levels open with progress."""

    def __init__(self, folder: Path, seed: int, labelled: bool = False) -> None:
        """Open the cache in `folder`.

        labelled  require a cache in which every object is annotated (drawn with --labelled)

        Raises  InputError if the cache is incomplete; ConfigError if its description is invalid or
                of another kind of clips.
        """
        self._folder, self._seed = folder, check_seed(seed)
        self.config = read_description(folder)
        if self.config.levels > len(LEVELS):
            raise ConfigError(
                f"{folder}: has clips of {self.config.levels} levels, wanted {len(LEVELS)} at most"
            )
        if labelled and not self.config.labelled:
            raise ConfigError(
                f"{folder}: has objects without annotation (distractors); a model that discovers "
                "objects needs a cache drawn with --labelled"
            )
        for shard in range(self.config.shards):
            self._open(shard)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.SAMPLE, self._seed, index)
        clips, levels = self.config.clips, self.config.levels
        level = int(rng.integers(min(levels, open_levels(progress))))
        number = level + levels * int(rng.integers(-(-(clips - level) // levels)))
        shard, row = divmod(number, self.config.shard)
        # Opened per clip, so that the source holds no files and can be sent to worker processes.
        frames, masks = self._open(shard)
        return Sample(np.array(frames[row]), np.array(masks[row]), f"synthetic clip {number}")

    def _open(self, shard: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Memory-map the frames and masks of a shard."""
        shape = self.config.shape(shard)
        frames, masks = shard_files(self._folder, shard)
        return _mapped(frames, (*shape, 3)), _mapped(masks, shape)


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); write the cache again, which adds what is missing"
        ) from error
    if array.shape != shape or array.dtype != np.uint8:
        raise InputError(
            f"{path}: wanted uint8 {shape}, as {DESCRIPTION} says, found {array.dtype}"
            f" {array.shape}; delete it and write the cache again"
        )
    return np.asarray(array)
