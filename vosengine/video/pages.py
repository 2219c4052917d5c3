"""Image files that hold several images: multi-page TIFF, animated WebP, PNG and GIF."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ..errors import SourceError
from .quiet import quiet_opencv

ANYTHING = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
"""As deep as it is, grey or colour without alpha, turned as EXIF says."""
OPENCV_BYTES = (1 << 31) - 1
"""OpenCV takes no more at once."""
BROWSERS_MS = 100.0
"""What browsers make of a frame that is to last 0 ms."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE, _DESCRIPTION = 254, 270
_ASIDE = 0b101  # a page that is a smaller version or a transparency mask of another


_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, struct.error, cv2.error),
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a TIFF: its number in the file, and where its directory is."""

    number: int
    at: int


@dataclass(frozen=True, slots=True)
class Pages:
    """What a file holds: how many images, and a TIFF's pages.

    interval_ms: the time between two images of a TIFF that ImageJ wrote; None if it does not say.
    """

    count: int
    pages: tuple[Page, ...] = ()
    interval_ms: float | None = None


def pages_of(path: Path) -> Pages:
    """How many images a file holds; 1 for whatever is no file of several or is damaged, for then
    the reading says so."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start[:4] in _TIFF:
            return _tiff_pages(path)
        if start[1:4] == b"PNG" or start[:4] == b"GIF8" or start[8:12] == b"WEBP":
            with Image.open(path) as image:
                return Pages(getattr(image, "n_frames", 1) - _stands_apart(image))
    except _DAMAGE:
        pass
    return Pages(1)


def read_pages(path: Path, pages: Pages) -> Iterator[tuple[np.ndarray, float | None]]:
    """Every image as Raw has them, and how many milliseconds it is shown; None if not said.

    Raises  SourceError, naming the file and the image.
    """
    read = _read_tiff if pages.pages else _read_animation
    number = 0
    try:
        for image, duration in read(path, pages):
            number += 1
            yield image, duration
    except _DAMAGE as error:
        raise SourceError(
            f"{path}: image {number + 1} of {pages.count} cannot be read ({error}); "
            "repair or remove it"
        ) from error
    if number < pages.count:
        raise SourceError(f"{path}: holds {number} of {pages.count} images; repair or remove it")


def to_rgb(image: np.ndarray) -> np.ndarray:
    """OpenCV's BGR as RGB; grey as it is."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


# Animations


def _stands_apart(image: Image.Image) -> bool:
    """Whether the first image is shown only where animations are not (APNG)."""
    return bool(image.info.get("default_image"))


def _read_animation(path: Path, pages: Pages) -> Iterator[tuple[np.ndarray, float | None]]:
    with Image.open(path) as image:
        skipped = int(_stands_apart(image))
        for number in range(skipped, skipped + pages.count):
            image.seek(number)
            if image.mode.startswith("RGB") and any(";16" in str(tile) for tile in image.tile):
                raise ValueError("16-bit colour in an animation, wanted 8 bits or grey")
            image.load()
            duration = float(image.info.get("duration") or BROWSERS_MS)
            upright = ImageOps.exif_transpose(image)
            deep = upright.mode.startswith("I")
            yield np.array(upright if deep else upright.convert("RGB")), duration


# TIFF


def _tiff_pages(path: Path) -> Pages:
    """A chain that is broken counts as one more page, which cannot be read."""
    found: list[Page] = []
    interval, number = None, 0
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
        header = file.read(8)
        if header[2:4] in (b"+\0", b"\0+"):
            header += file.read(8)
        directory = ImageFileDirectory_v2(header)
        at, seen = directory.next, set[int]()
        while at and at not in seen:
            seen.add(at)
            file.seek(at)
            directory = ImageFileDirectory_v2(header)
            try:
                directory.load(file)
                aside = directory.get(_SUBFILE, 0) & _ASIDE
                interval = _imagej_interval(directory) if number == 0 else interval
                following = directory.next
            except _DAMAGE:
                aside, following = 0, 0
            if not aside:
                found.append(Page(number, at))
            at, number = following, number + 1
    return Pages(len(found), tuple(found), interval) if len(found) > 1 else Pages(1)


def _imagej_interval(directory: ImageFileDirectory_v2) -> float | None:
    text = str(directory.get(_DESCRIPTION, ""))
    if not text.startswith("ImageJ="):
        return None
    said = dict(re.findall(r"^(finterval|fps)=([\d.eE+-]+)$", text, re.MULTILINE))
    seconds = float(said["finterval"]) if "finterval" in said else 1 / float(said.get("fps", "inf"))
    return seconds * 1e3 if 0 < seconds < math.inf else None


def _read_tiff(path: Path, pages: Pages) -> Iterator[tuple[np.ndarray, float | None]]:
    if path.stat().st_size > OPENCV_BYTES:
        yield from _read_large_tiff(path, pages)
        return
    # OpenCV walks from the first page to the wanted one, which takes 95 ms a page by the 900th. So
    # in memory alone, each page is made the file's first and last.
    memory = np.memmap(path, np.uint8, mode="c")
    order = "<" if memory[0] == ord("I") else ">"
    large = 43 in memory[2:4]
    start, place, counted = (8, f"{order}Q", 8) if large else (4, f"{order}I", 2)
    for page in pages.pages:
        struct.pack_into(place, memory, start, page.at)
        (entries,) = struct.unpack_from(f"{order}{'Q' if large else 'H'}", memory, page.at)
        struct.pack_into(place, memory, page.at + counted + entries * (20 if large else 12), 0)
        with quiet_opencv():
            image = cv2.imdecode(memory, ANYTHING)
        if image is None:
            raise ValueError("damaged, cut short or of an unknown kind")
        yield to_rgb(image), pages.interval_ms


def _read_large_tiff(path: Path, pages: Pages) -> Iterator[tuple[np.ndarray, float | None]]:
    with Image.open(path) as image:
        for page in pages.pages:
            image.seek(page.number)
            image.load()
            grey = image.mode in ("L", "F") or image.mode.startswith("I")
            yield np.array(image if grey else image.convert("RGB")), pages.interval_ms
