"""The masks that prompt a stream: one file for the first frame, or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..video import SourceFrame, read_mask


class Prompts:
    """The masks a caller gave: one file for the first frame, or a folder with one by frame name."""

    def __init__(self, path: Path | None) -> None:
        self._folder = path if path is not None and path.is_dir() else None
        # Read at once, so that a broken mask is an error before anything has been written.
        self._first = read_mask(path) if path is not None and self._folder is None else None
        if self._folder is not None and not any(self._folder.glob("*.png")):
            raise InputError(
                f"mask: the folder {path} holds no .png; wanted one per prompted frame"
            )

    def of(self, frame: SourceFrame) -> np.ndarray | None:
        if self._folder is not None:
            path = self._folder / f"{frame.name}.png"
            return read_mask(path) if path.exists() else None
        return self._first if frame.index == 0 else None
