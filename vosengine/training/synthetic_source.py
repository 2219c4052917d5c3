"""Training clips drawn on demand by the procedural generator."""

from __future__ import annotations

from ..types import Size
from .samples import Sample
from .streams import Stream, check_request, check_seed, clip_seed, generator
from .synthetic.levels import check_levels, make_level_clip, open_levels


class SyntheticSource:
    """Source of procedural clips; harder levels open with training progress."""

    def __init__(self, frames: int, size: Size, seed: int, labelled: bool = False) -> None:
        """Make the source.

        frames    frames per clip, 1 or more
        size      (height, width) of clips
        seed      0 or more
        labelled  every object is annotated; see `make_level_clip`

        Raises  ConfigError if no clip can be drawn at this length and size.
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
