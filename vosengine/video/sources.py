"""open_source: files, folders, glob patterns, cameras and network streams."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from ..errors import ConfigError, SourceError
from .camera import Camera
from .container import Video
from .depth import Depth
from .frame_source import FrameSource
from .images import Images, is_image
from .network import open_address

_ADDRESS = re.compile(r"(rtsps?|https?|rtmps?|udp)://", re.IGNORECASE)
_CAMERA = re.compile(r"[0-9]+")


def open_source(
    source: str | os.PathLike[str] | int, *, bits: int | None = None, reconnect: int = 0
) -> FrameSource:
    """Open a video file, image, image folder, glob pattern, camera or network address.

    source: a text of digits only is a camera index (write ./0 for a folder named 0); an existing
    path is never treated as a pattern, even if its name contains * ? or [.
    bits: bit depth of the data, 8 to 16, for pixels stored in more than 8 bits; None: chosen from
    the first frames.
    reconnect: maximum number of reconnections of a network address.

    Raises  SourceError if the source does not exist or cannot be read; ConfigError for a value out
            of range, and for reconnect if the source is not an address.
    """
    text = os.fspath(source) if not isinstance(source, int) else str(source)
    if isinstance(source, int) or _CAMERA.fullmatch(text):
        _refuse_reconnect(reconnect, text)
        return Camera(int(text))
    if _ADDRESS.match(text):
        return open_address(text, bits, reconnect)
    _refuse_reconnect(reconnect, text)
    path = Path(text)
    if path.is_dir():
        try:
            images = [p for p in path.iterdir() if is_image(p)]
        except OSError as error:
            raise SourceError(f"folder {path}: cannot be read ({error.strerror})") from error
        return _reading(Images(images, f"folder {path}", bits), path)
    if path.exists():
        if is_image(path):
            return _reading(Images([path], f"image {path}", bits), path)
        return _reading(Video(text, address=False, depth=Depth(bits)), path)
    if glob.has_magic(text):
        images = [p for p in map(Path, glob.glob(text, recursive=True)) if is_image(p)]
        folders = dict.fromkeys(image.parent for image in images)
        return _reading(Images(images, f"pattern {text}", bits), *folders, *images)
    raise SourceError(
        f"{text}: no such file or folder; wanted a video file, a folder of images, a pattern "
        "like 'frames/*.jpg', a camera number or an rtsp:// or http:// address"
    )


def _refuse_reconnect(reconnect: int, source: str) -> None:
    if reconnect:
        raise ConfigError(f"reconnect: {source} is no network address; leave --reconnect out")


def _reading(source: FrameSource, *paths: Path) -> FrameSource:
    source.reads = paths
    return source
