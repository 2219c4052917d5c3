"""A folder of photos, with masks where there are some: found, checked and read."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...errors import InputError
from ...types import Size

IMAGES, MASKS, REGIONS = "images", "masks", "regions"
PHOTO_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LAYOUT = (
    f"a folder {IMAGES}, at any depth, and beside it, if you have them, {MASKS} (PNG; 0 is"
    f" background, each other value an object) or {REGIONS} (PNG; each value a part of the photo)"
)
CACHE_BYTES = 256 << 20  # of decoded photos, in each process
_VOID = 255  # beside other values the border between objects, as in VOC; alone it is the object
_MOST_VALUES = 120  # a mask of more values is a soft matte
_LEAST_SIDE = 32  # pixels
_THUMB = 8  # pixels; at 8x8x3 products of bytes sum up exactly in float32, in any order
_SAME = 18.0  # grey levels by which thumbnails of nearly the same photo differ, at most (RMS)
_ORIENTATION = 0x0112  # EXIF's tag
_MASK_MODES = ("P", "L", "1")  # Pillow's names: indexed, grey, black and white

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Photo:
    """A photo on disk. `labels` is its mask, or its partition if `partition`, or None."""

    image: Path
    labels: Path | None
    partition: bool = False


@dataclass(frozen=True)
class Cutout:
    """An object of a photo: the pixels of value `label` in the labels of photo `number`."""

    number: int
    label: int


class Cutouts:
    """Objects to choose from, those of photos that are nearly the same as one."""

    def __init__(self, cutouts: Sequence[Cutout], rarity: NDArray[np.float64]) -> None:
        self.cutouts = tuple(cutouts)
        self._chances = np.cumsum([rarity[cutout.number] for cutout in cutouts])

    def __len__(self) -> int:
        return len(self.cutouts)

    def draw(self, rng: np.random.Generator) -> Cutout:
        return self.cutouts[_drawn(rng, self._chances)]


class PhotoLibrary:
    """The photos below a folder. Decoded ones are kept until they are too many.

    Photos that are nearly the same, such as frames of a video, share the chance of one.
    """

    def __init__(self, folder: Path, side: int) -> None:
        """side  photos are reduced to this short side, in pixels, where theirs is longer

        Every file is read here once. Raises InputError where there are no photos, one cannot be
        read or is tiny, or a mask has no photo, another size, or values that are no object ids.
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
            size, thumb = _glance(photo.image)
            if min(size) < _LEAST_SIDE:
                raise InputError(
                    f"{photo.image}: is {size[0]}x{size[1]}, wanted sides of at least"
                    f" {_LEAST_SIDE}; remove it"
                )
            thumbs.append(thumb)
            if photo.labels is None:
                continue
            labels = _read_labels(photo.labels)
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
            labels = _reduce_labels(labels, side)
            self._labels[number] = (labels.shape, zlib.compress(labels.tobytes(), 1))
        self.rarity = _rarity(np.stack(thumbs))  # [n] the chance of each, 0..1
        self._chances = np.cumsum(self.rarity)
        shows = {cutout.number for cutout in objects}
        bare = [self.rarity[n] * (n not in shows) for n in range(len(self.photos))]
        self._bare = np.cumsum(bare)
        self.objects = Cutouts(objects, self.rarity)
        self.regions = Cutouts(regions, self.rarity)

    def __getstate__(self) -> dict[str, object]:
        """For worker processes: all but what is in memory."""
        return {**self.__dict__, "_cache": OrderedDict(), "_bytes": 0}

    @property
    def bytes_kept(self) -> int:
        """Of decoded photos in memory."""
        return self._bytes

    def draw(self, rng: np.random.Generator) -> int:
        """The number of some photo."""
        return _drawn(rng, self._chances)

    def draw_bare(self, rng: np.random.Generator) -> int:
        """The number of some photo without objects in its mask, where there is one."""
        return _drawn(rng, self._bare if self._bare[-1] > 0 else self._chances)

    def image(self, number: int) -> Pixels:
        """[h, w, 3] RGB of photo `number`; not to be written to."""
        pixels = self._cache.pop(number, None)
        if pixels is None:
            pixels = _read_image(self.photos[number].image, self._side)
            self._bytes += pixels.nbytes
            while self._cache and self._bytes > CACHE_BYTES:
                self._bytes -= self._cache.popitem(last=False)[1].nbytes
        self._cache[number] = pixels
        return pixels

    def labels(self, number: int) -> Pixels:
        """[h, w] values of its mask or partition, of the same size; not to be written to."""
        shape, code = self._labels[number]
        return np.frombuffer(zlib.decompress(code), np.uint8).reshape(shape)


def open_photos(photos: Path | PhotoLibrary, size: Size) -> PhotoLibrary:
    """A folder's photos for clips of `size` (height, width), with room to zoom in."""
    if isinstance(photos, PhotoLibrary):
        return photos
    return PhotoLibrary(photos, max(288, 2 * min(size)))


def _find(folder: Path) -> Iterator[Photo]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; wanted {LAYOUT}")
    for images in sorted(p for p in folder.rglob(IMAGES) if p.is_dir()):
        photos = {path.stem: path for path in _files(images, PHOTO_EXTENSIONS)}
        masks = {path.stem: path for path in _files(images.parent / MASKS, (".png",))}
        regions = {path.stem: path for path in _files(images.parent / REGIONS, (".png",))}
        for stem, path in (*masks.items(), *regions.items()):
            if stem not in photos:
                raise InputError(f"{path}: there is no photo {stem} in {images}; remove the mask")
        for stem, path in photos.items():
            if stem in masks:
                yield Photo(path, masks[stem])
            else:
                yield Photo(path, regions.get(stem), stem in regions)


def _files(folder: Path, extensions: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in extensions and not path.name.startswith(".")
    )


def _glance(path: Path) -> tuple[Size, Pixels]:
    """(height, width) as shown, and the photo at 8x8 [8, 8, 3]. Reads all of the file."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5  # on its side
            size = (image.width, image.height) if turned else (image.height, image.width)
            image.draft("RGB", (_THUMB, _THUMB))
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    thumb = cv2.resize(pixels, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
    return size, np.asarray(thumb, np.uint8)


def _rarity(thumbs: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[n] one over the number of photos that are nearly the same, of thumbnails [n, ...]."""
    points = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    squares = (points**2).sum(axis=1)
    limit = _SAME**2 * points.shape[1]
    counts = np.empty(len(points))
    for start in range(0, len(points), 1024):
        rows = slice(start, start + 1024)
        distances = squares[rows, None] + squares - 2 * points[rows] @ points.T
        counts[rows] = (distances <= limit).sum(axis=1)
    return 1 / np.maximum(counts, 1)


def _drawn(rng: np.random.Generator, chances: NDArray[np.float64]) -> int:
    """An index, by the running sums of the chances."""
    place = np.searchsorted(chances, rng.random() * chances[-1], side="right")
    return min(int(place), len(chances) - 1)


def _read_image(path: Path, side: int) -> Pixels:
    """[h, w, 3] RGB, the short side `side` at most."""
    try:
        with Image.open(path) as image:
            short = min(image.size)
            if short > side:  # JPEG is decoded at a half, a quarter or an eighth
                image.draft("RGB", tuple(-(-s * side // short) for s in image.size))
            if image.getexif().get(_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    size = _reduced(pixels, side)
    if size != pixels.shape[:2]:
        pixels = np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    return pixels


def _read_labels(path: Path) -> Pixels:
    """[h, w] as stored: indices or grey levels."""
    try:
        with Image.open(path) as image:
            if image.mode not in _MASK_MODES:
                raise InputError(
                    f"{path}: is a picture of mode {image.mode}, wanted object ids: an indexed or"
                    " 8-bit grey PNG"
                )
            return np.asarray(image.convert("L") if image.mode == "1" else image, np.uint8)
    except (OSError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _reduce_labels(labels: Pixels, side: int) -> Pixels:
    size = _reduced(labels, side)
    if size == labels.shape:
        return labels
    resized = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, np.uint8)


def _reduced(pixels: Pixels, side: int) -> tuple[int, int]:
    """(height, width) when the short side is reduced to `side`."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({error}); repair or remove it")


def _good_objects(labels: Pixels, path: Path) -> list[int]:
    """Values of a mask that are objects, large and whole enough to be cut out."""
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
    """Values of a partition that look like things: not vast, thin or cut by the border."""
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
    """Share of its bounding box that a shape covers."""
    _, _, width, height = cv2.boundingRect(inside.view(np.uint8))
    return float(inside.sum()) / (width * height)
