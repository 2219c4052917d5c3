"""The masks that prompt a stream: one file for the first frame, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
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
            mask = read_mask(path) if path.exists() else None
        else:
            mask = self._first if frame.index == 0 else None
        if mask is not None:
            refuse_shown_size(mask.shape, frame)
        return mask


def refuse_shown_size(size: Sequence[int], frame: SourceFrame) -> None:
    """Raise InputError for a mask (height, width) at the size at which players show a frame whose
    pixels are not square."""
    height, width = frame.image.shape[:2]
    shown = (height, width * frame.sar), (height / frame.sar, width)
    if tuple(size) != (height, width) and any(
        all(abs(a - b) <= 1 for a, b in zip(size, each, strict=True)) for each in shown
    ):
        raise InputError(
            f"mask: is {size[0]} x {size[1]} (height x width), the size at which players show "
            f"frame {frame.name}, whose pixels are {frame.sar.numerator}:{frame.sar.denominator}; "
            f"wanted the size that is stored, {height} x {width}: resize the mask by nearest "
            "neighbour"
        )
