"""Training clips of one photo and its mask, warped for each frame (STM, section 3.4)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...types import Size
from ..object_ids import renumber
from ..samples import Sample
from ..streams import Stream, check_request, check_seed, generator
from ..synthetic.geometry import Matrix, about, rotate, scale, translate
from .casting import keep_seen
from .cutouts import ENLARGED
from .library import Cutout, Cutouts, PhotoLibrary, Pixels, open_photos
from .paste_source import check_clip

MOST_OBJECTS = 4
_GRID = 5  # control points of the elastic warp, per side
_TRIES = 8


class StillsSource:
    """Source of clips whose frames are random affine and smooth warps of one annotated photo."""

    def __init__(
        self, photos: Path | PhotoLibrary, frames: int, size: Size, seed: int,
        labelled: bool = False,
    ) -> None:  # fmt: skip
        """Make the source.

        photos    folder of photos in PhotoLibrary's layout, some with masks or regions
        frames    frames per clip, 1 or more
        size      (height, width) of clips
        seed      0 or more
        labelled  all objects of a photo are annotated; regions are not used

        Raises  ConfigError for values out of range; InputError if no photo has an object; the
                errors of PhotoLibrary.
        """
        check_clip(frames, size)
        self._frames, self._size, self._seed = frames, size, check_seed(seed)
        self._library, self._labelled = open_photos(photos, size), labelled
        regions = {} if labelled else self._library.regions.by_photo
        self._objects = {**self._library.objects.by_photo, **regions}
        if not self._objects:
            raise InputError(
                f"{self._library.folder}: no photo has a mask {'' if labelled else 'or a region '}"
                "with an object that is large enough; add masks, or use paste:, which needs none"
            )
        self._photos = Cutouts([Cutout(n, 0) for n in self._objects], self._library.rarity)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.PHOTOS, self._seed, index)
        for _ in range(_TRIES):
            number = self._photos.draw(rng).number
            photo, labels = self._library.image(number), self._chosen(rng, number)
            view = _draw_view(rng, photo, self._size)
            amount = 0.5 + 0.7 * progress * rng.random()
            frames = np.empty((self._frames, *self._size, 3), np.uint8)
            masks = np.empty((self._frames, *self._size), np.uint8)
            for time in range(self._frames):
                x, y = _lookup(rng, view, self._size, amount)
                cv2.remap(photo, x, y, cv2.INTER_LINEAR, frames[time], cv2.BORDER_REFLECT)
                cv2.remap(labels, x, y, cv2.INTER_NEAREST, masks[time], cv2.BORDER_REFLECT)
                frames[time] = _relight(rng, frames[time], amount)
            masks = renumber(keep_seen(masks))
            if masks[0].any():
                return Sample(
                    frames, masks, f"{self._library.photos[number].image.name} warped", True
                )
        raise InputError(
            f"warped photo {index}: none of {_TRIES} attempts shows an object; check the masks"
        )

    def _chosen(self, rng: np.random.Generator, number: int) -> Pixels:
        """Labels of photo `number` with a random subset of its objects; the rest is 0."""
        labels = self._objects[number]
        count = len(labels)
        if not self._labelled:
            count = int(rng.integers(1, min(MOST_OBJECTS, count) + 1))
        table = np.zeros(256, np.uint8)
        table[rng.choice(labels, count, replace=False)] = np.arange(1, count + 1)
        return np.asarray(table[self._library.labels(number)], np.uint8)


def _draw_view(rng: np.random.Generator, photo: Pixels, size: Size) -> Matrix:
    """Draw the map from frame pixels to photo pixels, before the warp."""
    whole = np.array(photo.shape[1::-1], np.float64)
    frame = np.array(size[::-1], np.float64)
    zoom = max(float((whole / frame).min()) * rng.uniform(0.7, 1.0), 1 / ENLARGED)
    start = (whole - zoom * frame) * rng.random(2)
    view = translate(start) @ scale(np.full(2, zoom))
    if rng.random() < 0.5:
        view = translate((whole[0] - 1, 0)) @ scale((-1, 1)) @ view
    return view


def _lookup(
    rng: np.random.Generator, view: Matrix, size: Size, amount: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw a warp: x and y [H, W] of the photo pixel shown by each frame pixel."""
    height, width = size
    unit = float(np.sqrt(height * width))
    motion = translate(rng.normal(0, 0.07 * amount * unit, 2))
    motion = motion @ rotate(rng.normal(0, 0.15 * amount), rng.normal(0, 0.1 * amount))
    motion = motion @ scale(np.exp(rng.normal(0, 0.1 * amount) + rng.normal(0, 0.04 * amount, 2)))
    whole = view @ about(np.array([width, height]) / 2, motion)
    bend = rng.normal(0, 0.02 * amount * unit * rng.random(), (_GRID, _GRID, 2))
    bend = np.asarray(
        cv2.resize(bend.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    )
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    x, y = columns + bend[..., 0], rows + bend[..., 1]
    linear = whole.astype(np.float32)
    return (
        linear[0, 0] * x + linear[0, 1] * y + linear[0, 2],
        linear[1, 0] * x + linear[1, 1] * y + linear[1, 2],
    )


def _relight(rng: np.random.Generator, frame: Pixels, amount: float) -> Pixels:
    """Change the frame's light: a gain per channel and an offset."""
    gains = np.exp(rng.normal(0, 0.06 * amount) + rng.normal(0, 0.03 * amount, 3))
    levels = np.arange(256)[:, None] * gains + rng.normal(0, 5 * amount)
    table = np.clip(levels + 0.5, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(frame, table[None]), np.uint8)
