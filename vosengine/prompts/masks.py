"""Masks of marked objects, by one of several methods."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import numpy as np

from ..errors import InputError
from .grabcut import grabcut
from .hints import Box, Pixels, Point, check_hints

METHODS = ("auto", "click", "grabcut")
CLICK_FILE = "demo/click.safetensors"  # inside the folder of the weights that ship


def mask_from(
    frame: np.ndarray,
    *,
    box: Box | None = None,
    points: Sequence[Point] = (),
    scribbles: np.ndarray | None = None,
    previous: np.ndarray | None = None,
    method: str = "auto",
) -> Pixels:
    """The mask of one object that is marked in a frame.

    frame      uint8 [H, W, 3] RGB
    box        x, y of its upper left pixel, width and height, in pixels: holds the object
    points     x, y in pixels, and whether the object is there (True) or not (False)
    scribbles  uint8 [H, W]: 0 nothing, 1 the object, 2 not the object
    previous   uint8 [H, W] 0 or 1: the last answer, where this call corrects it; give all points
               again, also those that it was made of. One that shows nothing counts as none
    method     "click": the network click.demo; "grabcut": colours alone, without torch; "auto":
               click where its weights ship, else grabcut
    returns    uint8 [H, W], 0 or 1; the same for the same arguments

    Raises  InputError: an unknown method; an argument of another type, shape or dtype; a box or a
            point that leaves the frame; nothing marked, or only background without a box or a
            previous mask. WeightsError: a damaged or missing click.demo.
    """
    if method not in METHODS:
        raise InputError(f"method: wanted one of {', '.join(METHODS)}, given {method!r}")
    hints = check_hints(frame, box, points, scribbles, previous)
    if method == "grabcut" or (method == "auto" and not click_ships()):
        return grabcut(frame, hints)
    from .click import click  # torch is not needed for anything else here

    return click(frame, hints)


def click_ships() -> bool:
    """Whether the click network's weights are part of this installation."""
    return (resources.files("vosengine.shipped") / CLICK_FILE).is_file()
