"""What every source of frames is: an iterable of named RGB images that can be closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

DEFAULT_FPS = 24.0


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """One frame: its name (an output file's stem), its number, and uint8 RGB [H, W, 3]."""

    name: str
    index: int
    image: np.ndarray


class FrameSource(ABC):
    """A sequence of frames that is read once, in order; open it again for another pass.

    length: number of frames the source says it has; None when unknown or live.
    fps: frames per second, DEFAULT_FPS where the source does not say.
    names: of all frames, where they are known before reading; None where frames are only numbered.
    live: frames arrive at their own pace (camera or stream), and do not wait for the reader.
    reads: files and folders on disk that the frames come from; none of a camera or an address.
    description: what is being read, for messages; holds no password.
    close() may be called from another thread than the reading one, and twice.
    """

    length: int | None = None
    fps: float = DEFAULT_FPS
    names: Sequence[str] | None = None
    live: bool = False
    reads: Sequence[Path] = ()
    description: str = ""
    _closed: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[SourceFrame]:
        """Yield the frames; SourceError when the source breaks off before its end."""

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
