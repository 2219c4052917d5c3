"""Frames from image files: a folder, a glob pattern, or a single file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import SourceError
from .clock import Clock
from .depth import Depth, Raw
from .frame_source import FrameSource, SourceFrame
from .names import in_order
from .pages import ANYTHING, Pages, pages_of, read_pages, to_rgb
from .quiet import quiet_opencv

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")


def is_image(path: Path) -> bool:
    """Whether a path is a visible file with an image extension."""
    # Hidden files are excluded: macOS creates a "._name.jpg" without image data for each image.
    extension = path.suffix[1:].lower()
    return extension in IMAGE_EXTENSIONS and path.name[0] != "." and path.is_file()


class Images(FrameSource):
    """Image files in natural order; frames are named by the files' stems.

    A file with several images (TIFF, animated WebP, PNG, GIF) gives one frame per image, named by
    number if it is the only file, else by stem and number. Frames have times if every file has.

    files: the image files.
    description: name of the source in messages.
    bits: as in `Depth`.

    Raises  SourceError if there are no files, or two frames would have the same name.
    """

    def __init__(self, files: Sequence[Path], description: str, bits: int | None = None) -> None:
        if not files:
            wanted = " ".join(IMAGE_EXTENSIONS)
            raise SourceError(f"{description} holds no images; wanted files ending in {wanted}")
        self.description = description
        self._depth = Depth(bits)
        self._files = [(path, pages_of(path)) for path in in_order(files)]
        self.length = sum(pages.count for _, pages in self._files)
        self._numbered = len(files) == 1 and self.length > 1
        self._timed = all(pages.count > 1 for _, pages in self._files)
        names: dict[str, Path] = {}
        for path, pages in self._files:
            for name in self._names_of(path, pages):
                if name in names:
                    raise SourceError(
                        f"{description}: {names[name]} and {path} would both be named "
                        f"{name!r}, wanted one image per name; rename or remove one of them"
                    )
                names[name] = path
        if not self._numbered:
            self.names = list(names)

    def _names_of(self, path: Path, pages: Pages) -> list[str]:
        if pages.count == 1:
            return [path.stem]
        start = "" if self._numbered else f"{path.stem}_"
        return [f"{start}{number:05d}" for number in range(pages.count)]

    def __iter__(self) -> Iterator[SourceFrame]:
        clock = Clock(self.tick, self.fps)
        for index, raw in enumerate(self._depth.flatten(self._read())):
            if self._closed:
                return
            yield SourceFrame(raw.name, index, raw.image, clock.time_of(raw.stamp))

    def facts(self) -> dict[str, Any]:
        return {"depth": self._depth.facts()}

    def _read(self) -> Iterator[Raw]:
        shown_ms = 0.0
        for path, pages in self._files:
            names = self._names_of(path, pages)
            if pages.count == 1:
                yield Raw(str(path), names[0], _read_image(path))
                continue
            for name, (image, lasts_ms) in zip(names, read_pages(path, pages), strict=True):
                timed = self._timed and lasts_ms is not None
                stamp = round(shown_ms / 1e3 / self.tick) if timed else None
                yield Raw(f"{path}, image {name}", name, image, stamp)
                shown_ms += lasts_ms or 0.0


def _read_image(path: Path) -> np.ndarray:
    """Grey [H, W] or RGB [H, W, 3] at the file's bit depth, without alpha, oriented by EXIF.

    Decoded from memory: imdecode rejects truncated files, imread returns them partly filled.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        with quiet_opencv():
            image = cv2.imdecode(data, ANYTHING) if data.size else None
    except (OSError, cv2.error) as error:
        raise SourceError(f"{path}: cannot be read ({error}); repair or remove it") from error
    if image is None:
        raise SourceError(
            f"{path}: cannot be decoded as an image (corrupt, truncated or another format); "
            "repair or remove it"
        )
    return to_rgb(image)
