"""Frames from still images: a folder, a pattern, or a single file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..errors import SourceError
from .frame_source import FrameSource, SourceFrame

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sorting key under which frame2 comes before frame10; ties broken by the text itself."""
    parts = re.split(r"(\d+)", text.lower())  # odd places hold the digits, so types never mix
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], text


def is_image(path: Path) -> bool:
    # Hidden files are left out: macOS puts a "._name.jpg" that is no image beside each image.
    extension = path.suffix[1:].lower()
    return extension in IMAGE_EXTENSIONS and path.name[0] != "." and path.is_file()


class Images(FrameSource):
    """Still images in natural order, each named by its stem."""

    def __init__(self, files: list[Path], description: str) -> None:
        if not files:
            wanted = " ".join(IMAGE_EXTENSIONS)
            raise SourceError(f"{description} holds no images; wanted files ending in {wanted}")
        self._files = sorted(files, key=lambda p: natural_key(str(p)))
        self.length = len(files)
        self.description = description
        self.names = [path.stem for path in self._files]
        seen: dict[str, Path] = {}
        for path in self._files:
            if path.stem in seen:
                raise SourceError(
                    f"{description}: {seen[path.stem]} and {path} would both be named "
                    f"{path.stem!r}, wanted one image per name; rename or remove one of them"
                )
            seen[path.stem] = path

    def __iter__(self) -> Iterator[SourceFrame]:
        for index, path in enumerate(self._files):
            if self._closed:
                return
            yield SourceFrame(path.stem, index, _read_image(path))


def _read_image(path: Path) -> np.ndarray:
    """uint8 RGB [H, W, 3]; 16-bit values are scaled to 8, alpha is dropped, EXIF is followed.

    Read by hand and decoded from memory: imdecode refuses a cut file that imread half fills.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error) as error:
        raise SourceError(f"{path}: cannot be read ({error}); repair or remove it") from error
    if image is None:
        raise SourceError(
            f"{path}: not an image that can be decoded (damaged, cut short or another format); "
            "repair or remove it"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
