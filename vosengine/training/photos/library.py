"""Library of photos with optional masks: search, checks and reading."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from ...errors import InputError
from ...types import Size
from ..pictures import files_in, opened, read_ids

IMAGES, MASKS, REGIONS = "images", "masks", "regions"
PHOTO_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LAYOUT = (
    f"a folder {IMAGES}, at any depth, and beside it, if you have them, {MASKS} (PNG; 0 is"
    f" background, each other value an object) or {REGIONS} (PNG; each value a part of the photo)"
)
CACHE_BYTES = 256 << 20  # limit of decoded photos per process
_VOID = 255  # void border between objects, as in VOC; an object if it is the only value
_MOST_VALUES = 120  # a mask with more values is taken for a soft matte
_LEAST_SIDE = 32  # pixels
_THUMB = 8  # pixels; sums of 8x8x3 products of bytes are exact in float32, in any order
_SAME = 18.0  # maximum RMS difference, in grey levels, of thumbnails of near duplicates
_ORIENTATION = 0x0112  # EXIF tag

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Photo:
    """A photo on disk. `labels` is its mask, its partition (if `partition`) or None."""

    image: Path
    labels: Path | None
    partition: bool = False


@dataclass(frozen=True)
class Cutout:
    """An object of a photo: the pixels of value `label` in the labels of photo `number`."""

    number: int
    label: int


class Cutouts:
    """Objects to draw from; near-duplicate photos share the probability of one."""

    def __init__(self, cutouts: Sequence[Cutout], rarity: NDArray[np.float64]) -> None:
        self.cutouts = tuple(cutouts)
        self.by_photo: dict[int, list[int]] = {}  # labels of the objects, by photo
        for cutout in cutouts:
            self.by_photo.setdefault(cutout.number, []).append(cutout.label)
        self._chances = np.cumsum([rarity[cutout.number] for cutout in cutouts])

    def __len__(self) -> int:
        return len(self.cutouts)

    def draw(self, rng: np.random.Generator) -> Cutout:
        """Draw a random object."""
        return self.cutouts[_draw_index(rng, self._chances)]


class PhotoLibrary:
    """Photos below a folder, with a cache of decoded ones (least recently used are dropped).

    Near duplicates, such as frames of a video, share the probability of one photo.
    """

    def __init__(self, folder: Path, side: int) -> None:
        """Find and check all photos; every file is read once.

        side  maximum short side in pixels; larger photos are reduced to it

        Raises  InputError without photos; if a photo cannot be read or is too small; if a mask has
                no photo, another size than it, or values that are no object ids.
        """
        self.folder, self._side = folder, side
        self.photos = tuple(_find(folder))
        if not self.photos:
            raise InputError(f"{folder}: holds no photos; wanted {LAYOUT}")
        self._cache: OrderedDict[int, Pixels] = OrderedDict()
        self._bytes = 0
        self._labels: dict[int, tuple[Size, bytes]] = {}
        thumbs = []
        objects: list[Cutout] = []
        regions: list[Cutout] = []
        for number, photo in enumerate(self.photos):
            size, thumb = _size_and_thumb(photo.image)
            if min(size) < _LEAST_SIDE:
                raise InputError(
                    f"{photo.image}: is {size[0]}x{size[1]}, wanted sides of at least"
                    f" {_LEAST_SIDE}; remove it"
                )
            thumbs.append(thumb)
            if photo.labels is None:
                continue
            labels = read_ids(photo.labels)
            if labels.shape != size:
                raise InputError(
                    f"{photo.labels}: is {labels.shape[0]}x{labels.shape[1]}, wanted"
                    f" {size[0]}x{size[1]} as {photo.image}"
                )
            if photo.partition:
                regions += [Cutout(number, label) for label in _good_regions(labels)]
            else:
                chosen = _good_objects(labels, photo.labels)
                objects += [Cutout(number, label) for label in chosen]
            labels = _reduced(labels, side, cv2.INTER_NEAREST)
            self._labels[number] = (labels.shape, zlib.compress(labels.tobytes(), 1))
        self.rarity = _rarity(np.stack(thumbs))  # [n] weight of each photo, 0..1
        self._chances = np.cumsum(self.rarity)
        self.objects = Cutouts(objects, self.rarity)
        self.regions = Cutouts(regions, self.rarity)
        bare = [self.rarity[n] * (n not in self.objects.by_photo) for n in range(len(self.photos))]
        self._bare = np.cumsum(bare)

    def __getstate__(self) -> dict[str, object]:
        """State for worker processes, without the cache."""
        return {**self.__dict__, "_cache": OrderedDict(), "_bytes": 0}

    @property
    def bytes_kept(self) -> int:
        """Bytes of decoded photos in the cache."""
        return self._bytes

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a photo; returns its number."""
        return _draw_index(rng, self._chances)

    def draw_bare(self, rng: np.random.Generator) -> int:
        """Draw a photo without objects in its mask, or any photo if there is none."""
        return _draw_index(rng, self._bare if self._bare[-1] > 0 else self._chances)

    def image(self, number: int) -> Pixels:
        """Photo `number` as [h, w, 3] RGB; read-only."""
        pixels = self._cache.pop(number, None)
        if pixels is None:
            pixels = _read_image(self.photos[number].image, self._side)
            self._bytes += pixels.nbytes
            while self._cache and self._bytes > CACHE_BYTES:
                self._bytes -= self._cache.popitem(last=False)[1].nbytes
        self._cache[number] = pixels
        return pixels

    def labels(self, number: int) -> Pixels:
        """Values [h, w] of a photo's mask or partition, at the photo's size; read-only."""
        shape, code = self._labels[number]
        return np.frombuffer(zlib.decompress(code), np.uint8).reshape(shape)


def open_photos(photos: Path | PhotoLibrary, size: Size) -> PhotoLibrary:
    """Open a folder for clips of `size` (height, width), at twice the resolution for zooming in."""
    if isinstance(photos, PhotoLibrary):
        return photos
    return PhotoLibrary(photos, max(288, 2 * min(size)))


def _find(folder: Path) -> Iterator[Photo]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; wanted {LAYOUT}")
    for images in sorted(p for p in folder.rglob(IMAGES) if p.is_dir()):
        photos = {path.stem: path for path in files_in(images, PHOTO_EXTENSIONS)}
        masks = {path.stem: path for path in files_in(images.parent / MASKS, (".png",))}
        regions = {path.stem: path for path in files_in(images.parent / REGIONS, (".png",))}
        for stem, path in (*masks.items(), *regions.items()):
            if stem not in photos:
                raise InputError(f"{path}: there is no photo {stem} in {images}; remove the mask")
        for stem, path in photos.items():
            if stem in masks:
                yield Photo(path, masks[stem])
            else:
                yield Photo(path, regions.get(stem), stem in regions)


def _size_and_thumb(path: Path) -> tuple[Size, Pixels]:
    """(height, width) after EXIF rotation, and a thumbnail [8, 8, 3]. Reads the whole file."""
    with opened(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5  # rotated by 90 degrees
        size = (image.width, image.height) if turned else (image.height, image.width)
        image.draft("RGB", (_THUMB, _THUMB))
        pixels = np.asarray(image.convert("RGB"), np.uint8)
    thumb = cv2.resize(pixels, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
    return size, np.asarray(thumb, np.uint8)


def _rarity(thumbs: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Weights [n]: 1 / number of near duplicates (itself included), from thumbnails [n, ...]."""
    points = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    squares = (points**2).sum(axis=1)
    limit = _SAME**2 * points.shape[1]
    counts = np.empty(len(points))
    for start in range(0, len(points), 1024):
        rows = slice(start, start + 1024)
        distances = squares[rows, None] + squares - 2 * points[rows] @ points.T
        counts[rows] = (distances <= limit).sum(axis=1)
    return 1 / np.maximum(counts, 1)


def draw_kind(rng: np.random.Generator, chances: Mapping[str, float]) -> str:
    """Draw a name with a probability in proportion to its weight."""
    weights = np.array(list(chances.values()))
    return list(chances)[int(rng.choice(len(weights), p=weights / weights.sum()))]


def _draw_index(rng: np.random.Generator, chances: NDArray[np.float64]) -> int:
    """Draw an index by cumulative weights [n]."""
    index = np.searchsorted(chances, rng.random() * chances[-1], side="right")
    return min(int(index), len(chances) - 1)


def _read_image(path: Path, side: int) -> Pixels:
    """Read a photo as [h, w, 3] RGB, reduced to a short side of at most `side`."""
    with opened(path) as image:
        width, height = image.size
        short = min(width, height)
        if short > side:  # JPEG can be decoded at 1/2, 1/4 or 1/8
            image.draft("RGB", (-(-width * side // short), -(-height * side // short)))
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        pixels = np.asarray(image.convert("RGB"), np.uint8)
    return _reduced(pixels, side, cv2.INTER_AREA)


def _reduced(pixels: Pixels, side: int, interpolation: int) -> Pixels:
    """Reduce the short side to at most `side`."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=interpolation), np.uint8)


def _good_objects(labels: Pixels, path: Path) -> list[int]:
    """Values of a mask that are objects large and compact enough to cut out."""
    counts = np.bincount(labels.ravel(), minlength=256)
    values = np.flatnonzero(counts[1:]) + 1
    if len(values) > _MOST_VALUES:
        raise InputError(
            f"{path}: has {len(values)} values, which is a soft matte; wanted 0 and 255, or an id"
            " for each object: set a threshold of 128"
        )
    if len(values) > 1:
        values = values[values != _VOID]
    least = 0.003 * labels.size
    return [int(v) for v in values if counts[v] >= least and _fill(labels == v) >= 0.12]


def _good_regions(labels: Pixels) -> list[int]:
    """Values of a partition that may be objects: not too large, thin or cut by the border."""
    counts = np.bincount(labels.ravel(), minlength=256)
    low, high = 0.01 * labels.size, 0.35 * labels.size
    chosen = []
    for value in np.flatnonzero((counts >= low) & (counts <= high)):
        inside = labels == value
        rim = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
        side = np.sqrt(counts[value])
        if value and rim.sum() <= 0.8 * side and _fill(inside) >= 0.35:
            chosen.append(int(value))
    return chosen


def _fill(inside: NDArray[np.bool_]) -> float:
    """Fraction of its bounding box that a shape covers."""
    _, _, width, height = cv2.boundingRect(inside.view(np.uint8))
    return float(inside.sum()) / (width * height)
