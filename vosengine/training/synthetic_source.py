"""Training clips that are drawn as they are asked for."""

from __future__ import annotations

from ..types import Size
from .samples import Sample
from .streams import Stream, check_request, check_seed, clip_seed, generator
from .synthetic.levels import check_levels, make_level_clip, open_levels


class SyntheticSource:
    """Procedural clips, easy ones first: the training's progress opens the harder levels."""

    def __init__(self, frames: int, size: Size, seed: int, labelled: bool = False) -> None:
        """frames  of every clip, 1 or more
        size  (height, width) of every clip
        seed  0 or more
        labelled  whether all that looks like an object is one, as `make_level_clip` has it

        Raises ConfigError where no clip can be drawn at this length and size.
        """
        check_levels(frames, size)
        self._frames, self._size, self._seed = frames, size, check_seed(seed)
        self._labelled = labelled

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.SAMPLE, self._seed, index)
        level = int(rng.integers(open_levels(progress)))
        seed = clip_seed(self._seed, index)
        clip = make_level_clip(level, seed, self._frames, self._size, self._labelled)
        return Sample(clip.frames, clip.masks, f"synthetic clip {index}")
