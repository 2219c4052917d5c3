"""Training clips of photo cut-outs moving over other photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...config.checks import check
from ...errors import InputError
from ...types import Size
from ..object_ids import renumber
from ..samples import Sample
from ..streams import Stream, check_request, check_seed, generator
from ..synthetic.config import MIN_SIDE
from .casting import difficulty_at, draw_photo_scene, keep_seen
from .library import PhotoLibrary, open_photos

_TRIES = 8
# Maximum difficulty at the start and at the end of training.
_CALM, _LIVELY = 0.1, 0.3


class PasteSource:
    """Source of clips of 1 to 4 cut-outs on photos; motion grows with training progress."""

    def __init__(
        self, photos: Path | PhotoLibrary, frames: int, size: Size, seed: int,
        labelled: bool = False,
    ) -> None:  # fmt: skip
        """Make the source.

        photos    folder of photos in PhotoLibrary's layout
        frames    frames per clip, 1 or more
        size      (height, width) of clips
        seed      0 or more
        labelled  all moving figures are annotated (no distractors or occluders)

        Raises  ConfigError for values out of range; the errors of PhotoLibrary.
        """
        check_clip(frames, size)
        self._frames, self._size, self._seed = frames, size, check_seed(seed)
        self._labelled = labelled
        self._library = open_photos(photos, size)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.PHOTOS, self._seed, index)
        for _ in range(_TRIES):
            difficulty = difficulty_at(rng.uniform(0, _CALM + (_LIVELY - _CALM) * progress))
            step = int(rng.integers(1, difficulty.steps + 1))
            times = [step * number for number in range(self._frames)]
            scene = draw_photo_scene(
                rng, self._library, self._size, times, difficulty, self._labelled
            )
            drawn = [scene.frame(time, rng) for time in times]
            masks = renumber(keep_seen(np.stack([mask for _, mask in drawn])))
            if masks[0].any():
                frames = np.stack([frame for frame, _ in drawn])
                return Sample(frames, masks, f"pasted clip {index}", True)
        raise InputError(
            f"pasted clip {index}: none of {_TRIES} attempts shows an object; check the masks"
        )


def check_clip(frames: int, size: Size) -> None:
    """Check a clip's length and size. Raises ConfigError."""
    check(frames >= 1, "frames", "at least 1", frames)
    check(min(size) >= MIN_SIDE, "size", f"sides of at least {MIN_SIDE}", size)
