"""Image files with several images: multi-page TIFF, animated WebP, PNG and GIF."""

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
"""At the file's bit depth, grey or colour without alpha, EXIF orientation applied."""
OPENCV_BYTES = (1 << 31) - 1
"""Maximum size of OpenCV's input."""
BROWSERS_MS = 100.0
"""Duration that browsers use for a frame of 0 ms."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE, _DESCRIPTION, _SHORT = 254, 270, 3
_Value = Sequence[Any]  # of a tag: type, count, and the value or its offset
_ASIDE = 0b101  # subfile type: reduced-resolution version or transparency mask of another page


_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, struct.error, cv2.error),
    Image.DecompressionBombError,
    MemoryError,  # corrupt length
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a TIFF.

    number: index in the file.
    at: offset of its directory.
    next_at: offset of the field with the next directory's offset.
    """

    number: int
    at: int
    next_at: int


@dataclass(frozen=True, slots=True)
class Pages:
    """The images of a file.

    count: number of images.
    pages: pages of a TIFF with several images, else empty.
    interval_ms: time between images in a TIFF written by ImageJ, or None.
    """

    count: int
    pages: tuple[Page, ...] = ()
    interval_ms: float | None = None


def pages_of(path: Path) -> Pages:
    """The images of a file; count 1 for other or corrupt files, whose error reading raises."""
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
    """Yield every image (as in Raw) with its duration in milliseconds, or None if unknown.

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
    """Convert OpenCV's BGR [H, W, 3] to RGB; grey [H, W] is unchanged."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


# Animations


def _stands_apart(image: Image.Image) -> bool:
    """Whether the first image is the fallback of an APNG and not part of the animation."""
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
    """Byte order and offset size (32 bits, or 64 for BigTIFF) of a TIFF, from its header."""

    def __init__(self, header: bytes) -> None:
        self.order: Literal["little", "big"] = "little" if header[:2] == b"II" else "big"
        large, sign = 43 in header[2:4], "<" if self.order == "little" else ">"
        self.first_at = 8 if large else 4
        self.offset = struct.Struct(sign + ("Q" if large else "I"))
        self._count = struct.Struct(sign + ("Q" if large else "H"))
        self._entry = struct.Struct(sign + ("HHQ8s" if large else "HHI4s"))

    def directory(self, file: BinaryIO, at: int) -> tuple[dict[int, _Value], int]:
        """The directory at an offset, by tag, and the position of the next directory's offset.

        Raises  struct.error.
        """
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
    """The pages of a TIFF; a broken chain of directories counts as one more, unreadable page."""
    pages: list[Page] = []
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
                pages.append(Page(number, at, next_at))
            at, number = following, number + 1
    return Pages(len(pages), tuple(pages), interval) if len(pages) > 1 else Pages(1)


def _imagej_interval(description: str) -> float | None:
    if not description.startswith("ImageJ="):
        return None
    fields = dict(
        re.findall(r"^(finterval|fps)=(\d+\.?\d*(?:[eE][+-]?\d+)?)$", description, re.MULTILINE)
    )
    seconds, rate = float(fields.get("finterval", 0)), float(fields.get("fps", 0))
    seconds = seconds or (1 / rate if rate else 0)
    return seconds * 1e3 if 0 < seconds < math.inf else None


def _read_tiff(path: Path, pages: Pages) -> Iterator[tuple[np.ndarray, float | None]]:
    if path.stat().st_size > OPENCV_BYTES:
        yield from _read_large_tiff(path, pages)
        return
    # OpenCV follows the chain from the first page (95 ms per page at the 900th). So in a private
    # memory map, each page is made the file's first and last.
    memory = np.memmap(path, np.uint8, mode="c")
    layout = _Layout(memory[:4].tobytes())
    for page in pages.pages:
        layout.offset.pack_into(memory.data, layout.first_at, page.at)
        layout.offset.pack_into(memory.data, page.next_at, 0)
        with quiet_opencv():
            image = cv2.imdecode(memory, ANYTHING)
        if image is None:
            raise ValueError("corrupt, truncated or of an unknown kind")
        yield to_rgb(image), pages.interval_ms


def _read_large_tiff(path: Path, pages: Pages) -> Iterator[tuple[np.ndarray, float | None]]:
    with Image.open(path) as image:
        for page in pages.pages:
            image.seek(page.number)
            image.load()
            grey = image.mode in ("L", "F") or image.mode.startswith("I")
            yield np.array(image if grey else image.convert("RGB")), pages.interval_ms
