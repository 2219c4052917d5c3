"""Pictures and masks of training data, read with Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError

_ID_MODES = ("P", "L", "1")  # Pillow modes: indexed, grey, black and white


def files_in(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """The files with these extensions, sorted, without hidden ones; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in extensions and not path.name.startswith(".")
    )


@contextmanager
def opened(path: Path, *, ids: bool = False) -> Iterator[Image.Image]:
    """Context manager of an image file.

    Raises  InputError if it cannot be read; with `ids`, if its mode is none of a mask's.
    """
    try:
        with Image.open(path) as image:
            if ids and image.mode not in _ID_MODES:
                raise InputError(
                    f"{path}: is a picture of mode {image.mode}, wanted object ids: an indexed or"
                    " 8-bit grey PNG"
                )
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); repair or remove it") from error


def read_ids(path: Path) -> NDArray[np.uint8]:
    """Read a mask [H, W] of ids: indices or grey levels. Raises InputError as `opened`."""
    with opened(path, ids=True) as image:
        return np.asarray(image.convert("L") if image.mode == "1" else image, np.uint8)
