"""What every source of frames is: an iterable of named RGB images that can be closed."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

DEFAULT_FPS = 24.0
DEFAULT_TICK = Fraction(1, 90_000)


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """One frame.

    name: an output file's stem; index: its number.
    image: uint8 RGB [H, W, 3], turned upright; pixels as they are stored, not stretched by `sar`.
    time_s: when it is shown, in seconds from where the source starts; it grows from frame to
    frame. None, for all frames of a source, where the source does not say.
    sar: width of a pixel over its height, as the image stands here.
    """

    name: str
    index: int
    image: np.ndarray
    time_s: float | None = None
    sar: Fraction = Fraction(1)


def without_password(location: str) -> str:
    """An address without the user and password in it; anything else as it is."""
    return re.sub(r"//[^/@]*@", "//***@", location)


class FrameSource(ABC):
    """A sequence of frames that is read once, in order; open it again for another pass.

    length: number of frames the source says it has; None when unknown or live.
    fps: frames per second, DEFAULT_FPS where the source does not say.
    tick: what times are whole multiples of, in seconds.
    names: of all frames, where they are known before reading; None where frames are only numbered.
    live: frames arrive at their own pace (camera or stream), and do not wait for the reader.
    reads: files and folders on disk that the frames come from; none of a camera or an address.
    description: what is being read, for messages; holds no password.
    close() may be called from another thread than the reading one, and twice.
    """

    length: int | None = None
    fps: float = DEFAULT_FPS
    tick: Fraction = DEFAULT_TICK
    names: Sequence[str] | None = None
    live: bool = False
    reads: Sequence[Path] = ()
    description: str = ""
    _closed: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the frames; SourceError when the source breaks off before its end."""

    def facts(self) -> dict[str, Any]:
        """What a summary says of the source, as JSON; whole once the frames have been read."""
        return {}

    def close(self) -> None:
        """Let go of files and devices; an iteration under way ends."""
        self._closed = True

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
