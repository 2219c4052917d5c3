"""FrameSource, the base class of all frame sources, and SourceFrame."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_FPS = 24.0
DEFAULT_TICK = Fraction(1, 90_000)


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """A frame of a source.

    name: stem for output files.
    index: number of the frame, from 0.
    image: uint8 RGB [H, W, 3], upright; pixels as stored, not rescaled by `sar`.
    time_s: presentation time in seconds from the start of the source, strictly increasing; None for
    all frames if the source has no times.
    sar: sample aspect ratio, width of a pixel over its height, of the upright image.
    """

    name: str
    index: int
    image: np.ndarray
    time_s: float | None = None
    sar: Fraction = Fraction(1)


def without_password(location: str) -> str:
    """Replace user and password in an address by ***; other text is unchanged."""
    return re.sub(r"//[^/@]*@", "//***@", location)


class FrameSource(ABC):
    """An iterable of frames, read once, in order; open the source again for another pass.

    length: number of frames according to the source; None if unknown or live.
    fps: frames per second; DEFAULT_FPS if unknown.
    tick: resolution of times, in seconds.
    names: names of all frames if known before reading; None if frames are only numbered.
    live: frames arrive in real time (camera or stream) and do not wait for the reader.
    reads: files and folders on disk that are read; empty for a camera or an address.
    description: name of the source for messages, without password.
    close() may be called from any thread, and repeatedly.
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
        """Yield the frames. Raises SourceError if the source ends prematurely."""

    def facts(self) -> dict[str, Any]:
        """Facts for a run's summary, JSON-serialisable; complete after all frames are read."""
        return {}

    def close(self) -> None:
        """Release files and devices, and end a running iteration."""
        self._closed = True

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
