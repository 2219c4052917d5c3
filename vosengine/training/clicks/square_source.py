"""Squares of photos around one object, part of a photo or cut-out each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import InputError
from ...prompts.crop import GREY, box_of, square_around
from ..photos.library import Cutouts, PhotoLibrary, Pixels, open_photos
from ..photos.paste_source import PasteSource
from ..samples import Sample
from ..streams import Stream, check_request, check_seed, generator

KINDS = {"objects": 0.5, "regions": 0.2, "paste": 0.3}
PASTED = (288, 384)  # (height, width) of what a square of a pasted frame is taken from
WHOLE = 0.2  # chance that the square holds the whole photo, as where no box is given
ENLARGED = (1.15, 2.0)  # side of the other squares over the longer side of their object
SHIFT = 0.08  # of its side: standard deviation of where its middle lies
LEAST = 0.002  # of the square: smaller objects are drawn again
_TRIES = 8


class SquareSource:
    """One frame a clip, the object 1: objects by their masks, parts of partitioned photos, and
    cut-outs on other photos."""

    def __init__(self, photos: Path | PhotoLibrary, size: int, seed: int) -> None:
        """photos  a folder of them, as `PhotoLibrary` finds them, some with masks or regions
        size  of the squares' sides, in pixels

        Raises ConfigError, InputError as PasteSource does.
        """
        self._library = open_photos(photos, PASTED)
        self._size, self._seed = size, check_seed(seed)
        self._pasted = PasteSource(self._library, 1, PASTED, seed)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.CLICKS, self._seed, index)
        sizes = {"objects": len(self._library.objects), "regions": len(self._library.regions)}
        names = [name for name in KINDS if sizes.get(name, 1)]
        chances = np.array([KINDS[name] for name in names])
        for attempt in range(_TRIES):
            name = names[int(rng.choice(len(names), p=chances / chances.sum()))]
            if name == "paste":
                frame, mask = self._paste(rng, index * _TRIES + attempt, progress)
            else:
                frame, mask = self._still(
                    rng, self._library.objects if name == "objects" else self._library.regions
                )
            frame, mask = self._square(rng, frame, mask)
            if mask.mean() >= LEAST:
                return Sample(frame[None], mask[None], f"square {index} of {name}", True)
        raise InputError(
            f"square {index}: of {_TRIES} drawings none shows an object; look at the masks"
        )

    def _paste(
        self, rng: np.random.Generator, index: int, progress: float
    ) -> tuple[Pixels, Pixels]:
        clip = self._pasted.sample(index, progress)
        chosen = rng.choice(np.unique(clip.masks)[1:])
        return clip.frames[0], np.asarray(clip.masks[0] == chosen, np.uint8)

    def _still(self, rng: np.random.Generator, cutouts: Cutouts) -> tuple[Pixels, Pixels]:
        cutout = cutouts.draw(rng)
        mask = self._library.labels(cutout.number) == cutout.label
        return self._library.image(cutout.number), np.asarray(mask, np.uint8)

    def _square(
        self, rng: np.random.Generator, frame: Pixels, mask: Pixels
    ) -> tuple[Pixels, Pixels]:
        box, enlarged = box_of(mask), float("inf")
        if rng.random() >= WHOLE:
            enlarged = float(np.exp(rng.uniform(*np.log(ENLARGED))))
        shift = rng.normal(0, SHIFT, 2)
        height, width = mask.shape
        if np.isinf(enlarged):
            box, enlarged = (0, 0, width, height), 1.0
        crop = square_around(box, (height, width), enlarged, (shift[0], shift[1]))
        cut = crop.cut(frame, self._size, GREY)
        return cut, np.asarray(crop.cut(mask * 255, self._size, 0) >= 128, np.uint8)
