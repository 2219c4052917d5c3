"""Image files that hold several images: multi-page TIFF, animated WebP, PNG and GIF."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from PIL import Image, ImageOps

from ..errors import SourceError
from .quiet import quiet_opencv

ANYTHING = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
"""As deep as it is, grey or colour without alpha, turned as EXIF says."""
OPENCV_BYTES = (1 << 31) - 1
"""OpenCV takes no more at once."""
BROWSERS_MS = 100.0
"""What browsers make of a frame that is to last 0 ms."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE, _DESCRIPTION, _SHORT = 254, 270, 3
_Value = Sequence[Any]  # of a tag: kind, count, and the value or its offset
_ASIDE = 0b101  # a page that is a smaller version or a transparency mask of another


_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, struct.error, cv2.error),
    Image.DecompressionBombError,
    MemoryError,  # a damaged length
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a TIFF: its number, where its directory is, and where that names the next one."""

    number: int
    at: int
    next_at: int


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


class _Layout:
    """Where things are in a TIFF, by its first bytes: in either byte order, with offsets of 32 or
    64 bits."""

    def __init__(self, header: bytes) -> None:
        self.order: Literal["little", "big"] = "little" if header[:2] == b"II" else "big"
        large, sign = 43 in header[2:4], "<" if self.order == "little" else ">"
        self.first_at = 8 if large else 4
        self.offset = struct.Struct(sign + ("Q" if large else "I"))
        self._count = struct.Struct(sign + ("Q" if large else "H"))
        self._entry = struct.Struct(sign + ("HHQ8s" if large else "HHI4s"))

    def directory(self, file: BinaryIO, at: int) -> tuple[dict[int, _Value], int]:
        """The directory there, and where the offset of the next one is. Raises struct.error."""
        file.seek(at)
        entries = int(self._count.unpack(file.read(self._count.size))[0])
        table = file.read(min(entries, 1 << 16) * self._entry.size)
        values: dict[int, _Value] = {tag: v for tag, *v in self._entry.iter_unpack(table)}
        return values, at + self._count.size + entries * self._entry.size

    def number(self, value: _Value) -> int:
        kind, _, data = value
        return int.from_bytes(data[: 2 if kind == _SHORT else 4], self.order)

    def text(self, file: BinaryIO, value: _Value) -> str:
        _, count, data = value
        if count > len(data):
            file.seek(self.offset.unpack(data)[0])
            data = file.read(min(count, 1 << 16))
        return data[:count].decode("latin-1")

    def offset_at(self, file: BinaryIO, at: int) -> int:
        file.seek(at)
        return int(self.offset.unpack(file.read(self.offset.size))[0])


def _tiff_pages(path: Path) -> Pages:
    """A chain that is broken counts as one more page, which cannot be read."""
    found: list[Page] = []
    interval, number = None, 0
    with path.open("rb") as file:
        layout = _Layout(file.read(4))
        at, seen = layout.offset_at(file, layout.first_at), set[int]()
        while at and at not in seen:
            seen.add(at)
            aside = following = next_at = 0
            try:
                values, next_at = layout.directory(file, at)
                if _SUBFILE in values:
                    aside = layout.number(values[_SUBFILE]) & _ASIDE
                if number == 0 and _DESCRIPTION in values:
                    interval = _imagej_interval(layout.text(file, values[_DESCRIPTION]))
                following = layout.offset_at(file, next_at)
            except struct.error:
                pass
            if not aside:
                found.append(Page(number, at, next_at))
            at, number = following, number + 1
    return Pages(len(found), tuple(found), interval) if len(found) > 1 else Pages(1)


def _imagej_interval(description: str) -> float | None:
    if not description.startswith("ImageJ="):
        return None
    said = dict(
        re.findall(r"^(finterval|fps)=(\d+\.?\d*(?:[eE][+-]?\d+)?)$", description, re.MULTILINE)
    )
    seconds, rate = float(said.get("finterval", 0)), float(said.get("fps", 0))
    seconds = seconds or (1 / rate if rate else 0)
    return seconds * 1e3 if 0 < seconds < math.inf else None


def _read_tiff(path: Path, pages: Pages) -> Iterator[tuple[np.ndarray, float | None]]:
    if path.stat().st_size > OPENCV_BYTES:
        yield from _read_large_tiff(path, pages)
        return
    # OpenCV walks from the first page to the wanted one, which takes 95 ms a page by the 900th. So
    # in memory alone, each page is made the file's first and last.
    memory = np.memmap(path, np.uint8, mode="c")
    layout = _Layout(memory[:4].tobytes())
    for page in pages.pages:
        layout.offset.pack_into(memory.data, layout.first_at, page.at)
        layout.offset.pack_into(memory.data, page.next_at, 0)
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
