"""One way to open them all: files, folders, patterns, cameras and network streams."""

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
    """Open a video file, image, image folder, glob pattern, camera number or address.

    A text of digits only is a camera number (write ./0 for a folder named 0). A path that
    exists is taken as it stands, even where its name holds * ? or [.

    bits: depth of the data, 8 to 16, for pixels that are stored in more than 8 bits; None chooses
    it by the first frames.
    reconnect: how often a network address that drops is opened again.

    Raises SourceError when there is nothing there, or nothing that can be read; ConfigError for a
    number out of its range, and for reconnect with a source that is no address.
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
            found = [p for p in path.iterdir() if is_image(p)]
        except OSError as error:
            raise SourceError(f"folder {path}: cannot be read ({error.strerror})") from error
        return _reading(Images(found, f"folder {path}", bits), path)
    if path.exists():
        if is_image(path):
            return _reading(Images([path], f"image {path}", bits), path)
        return _reading(Video(text, address=False, depth=Depth(bits)), path)
    if glob.has_magic(text):
        found = [p for p in map(Path, glob.glob(text, recursive=True)) if is_image(p)]
        folders = dict.fromkeys(image.parent for image in found)
        return _reading(Images(found, f"pattern {text}", bits), *folders, *found)
    raise SourceError(
        f"{text}: no such file or folder; wanted a video file, a folder of images, a pattern "
        "like 'frames/*.jpg', a camera number or an rtsp:// or http:// address"
    )


def _refuse_reconnect(reconnect: int, source: str) -> None:
    if reconnect:
        raise ConfigError(
            f"reconnect: {source} is no network address, so nothing can drop; leave --reconnect out"
        )


def _reading(source: FrameSource, *paths: Path) -> FrameSource:
    source.reads = paths
    return source
