"""Training samples of the click network: square crops around one object of a photo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ...errors import InputError
from ...prompts.crop import GREY, box_of, square_around
from ..photos.library import Cutouts, PhotoLibrary, Pixels, draw_kind, open_photos
from ..photos.paste_source import PasteSource
from ..samples import Sample
from ..streams import Stream, check_request, check_seed, generator

KINDS = {"objects": 0.5, "regions": 0.2, "paste": 0.3}  # probabilities of the kinds of samples
PASTED = (288, 384)  # (height, width) of pasted frames, before cropping
# Probabilities that a second object or region is added to the object, and that a thin line is:
# without them a network learns that objects fill their boxes.
JOINED, ROPED = 0.3, 0.1
WHOLE = 0.2  # probability that the square holds the whole photo, as without a box
ENLARGED = (1.15, 2.0)  # side of other squares, relative to the object's longer side
SHIFT = 0.08  # standard deviation of the square's centre, relative to its side
LEAST = 0.002  # minimum area of the object in the square; smaller ones are drawn again
_TRIES = 8


class SquareSource:
    """Source of clips of one frame with object 1: annotated objects, regions of partitioned photos,
    and cut-outs pasted on other photos."""

    def __init__(self, photos: Path | PhotoLibrary, size: int, seed: int) -> None:
        """Make the source.

        photos  folder of photos in PhotoLibrary's layout, some with masks or regions
        size    side of the squares in pixels

        Raises  ConfigError, InputError as PasteSource.
        """
        self._library = open_photos(photos, PASTED)
        self._size, self._seed = size, check_seed(seed)
        self._pasted = PasteSource(self._library, 1, PASTED, seed)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.CLICKS, self._seed, index)
        kinds = {"objects": self._library.objects, "regions": self._library.regions}
        chances = {n: share for n, share in KINDS.items() if n not in kinds or len(kinds[n])}
        for attempt in range(_TRIES):
            name = draw_kind(rng, chances)
            if name == "paste":
                frame, mask = self._paste(rng, index * _TRIES + attempt, progress)
            else:
                frame, mask = self._still(rng, kinds[name])
            if rng.random() < ROPED:
                frame, mask = _with_rope(rng, frame, mask)
            frame, mask = self._square(rng, frame, mask)
            if mask.mean() >= LEAST:
                return Sample(frame[None], mask[None], f"square {index} of {name}", True)
        raise InputError(
            f"square {index}: none of {_TRIES} attempts shows an object; check the masks"
        )

    def _paste(
        self, rng: np.random.Generator, index: int, progress: float
    ) -> tuple[Pixels, Pixels]:
        clip = self._pasted.sample(index, progress)
        ids = [int(value) for value in np.unique(clip.masks)[1:]]
        return clip.frames[0], _chosen(rng, clip.masks[0], ids[int(rng.integers(len(ids)))], ids)

    def _still(self, rng: np.random.Generator, cutouts: Cutouts) -> tuple[Pixels, Pixels]:
        drawn = cutouts.draw(rng)
        labels, others = self._library.labels(drawn.number), cutouts.by_photo[drawn.number]
        return self._library.image(drawn.number), _chosen(rng, labels, drawn.label, others)

    def _square(
        self, rng: np.random.Generator, frame: Pixels, mask: Pixels
    ) -> tuple[Pixels, Pixels]:
        height, width = mask.shape
        if rng.random() < WHOLE:
            box, enlarged = (0, 0, width, height), 1.0
        else:
            box, enlarged = box_of(mask), float(np.exp(rng.uniform(*np.log(ENLARGED))))
        shift = rng.normal(0, SHIFT, 2)
        crop = square_around(box, (height, width), enlarged, (shift[0], shift[1]))
        cut = crop.cut(frame, self._size, GREY)
        return cut, np.asarray(crop.cut(mask * 255, self._size, 0) >= 128, np.uint8)


def _chosen(rng: np.random.Generator, labels: Pixels, label: int, others: Sequence[int]) -> Pixels:
    """Mask [h, w] of a label, 0 or 1; with probability JOINED, also of another label."""
    mask = labels == label
    rest = [other for other in others if other != label]
    if rest and rng.random() < JOINED:
        mask |= labels == rest[int(rng.integers(len(rest)))]
    return np.asarray(mask, np.uint8)


def _with_rope(rng: np.random.Generator, frame: Pixels, mask: Pixels) -> tuple[Pixels, Pixels]:
    """Add to the object a thin line of one colour, from one of its pixels to anywhere."""
    frame, mask = frame.copy(), mask.copy()
    height, width = mask.shape
    pixels = np.flatnonzero(mask)
    if len(pixels):
        y, x = divmod(int(rng.choice(pixels)), width)
        end = int(rng.integers(width)), int(rng.integers(height))
        thick = int(rng.integers(1, 4))
        cv2.line(frame, (x, y), end, rng.integers(0, 256, 3).tolist(), thick, cv2.LINE_AA)
        cv2.line(mask, (x, y), end, 1, thick)
    return frame, mask
