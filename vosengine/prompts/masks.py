"""mask_from: a mask from interactive prompts, by a choice of methods."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import numpy as np

from ..errors import InputError
from .grabcut import grabcut
from .hints import Box, Pixels, Point, check_hints

METHODS = ("auto", "click", "grabcut")
CLICK_FILE = "demo/click.safetensors"  # relative to the folder of the weights that ship


def mask_from(
    frame: np.ndarray,
    *,
    box: Box | None = None,
    points: Sequence[Point] = (),
    scribbles: np.ndarray | None = None,
    previous: np.ndarray | None = None,
    method: str = "auto",
) -> Pixels:
    """Segment one object that is marked in a frame.

    frame      uint8 [H, W, 3] RGB
    box        bounding box of the object: x, y of its upper left pixel, width, height, in pixels
    points     (x, y, positive) each, in pixels; positive: True on the object, False on background
    scribbles  uint8 [H, W]: 0 unmarked, 1 object, 2 background
    previous   uint8 [H, W] 0 or 1: the last result, to be corrected; repeat all earlier points. All
               0 is the same as None
    method     "click": the network click.demo; "grabcut": colours only, without torch; "auto":
               click if its weights ship, else grabcut

    Returns  uint8 [H, W], 0 or 1; deterministic

    Raises  InputError for an unknown method, an argument of another type, shape or dtype, a box or
            point outside the frame, and if nothing is marked, or only background without a box or
            previous mask; WeightsError if click.demo is missing or corrupt.
    """
    if method not in METHODS:
        raise InputError(f"method: wanted one of {', '.join(METHODS)}, given {method!r}")
    hints = check_hints(frame, box, points, scribbles, previous)
    if method == "grabcut" or (method == "auto" and not click_ships()):
        return grabcut(frame, hints)
    from .click import click  # imports torch

    return click(frame, hints)


def click_ships() -> bool:
    """Whether the click network's weights are part of this installation."""
    return (resources.files("vosengine.shipped") / CLICK_FILE).is_file()
