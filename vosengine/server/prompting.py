"""Masks from boxes and points for /v1/prompt."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..prompts import Box, Point, mask_from
from .images import decode_image
from .protocol import image_bytes

MOST_POINTS = 256


def _numbers(text: str, count: int, name: str, form: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != count or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        raise InputError(f"{name}: wanted {count} integers separated by commas, {form}")
    return [int(part) for part in parts]


def parse_box(values: list[str]) -> Box | None:
    """Parse X,Y,W,H. Raises InputError."""
    if not values:
        return None
    if len(values) > 1:
        raise InputError("box: wanted at most one")
    left, top, width, height = _numbers(values[0], 4, "box", "X,Y,W,H")
    return left, top, width, height


def parse_points(values: list[str]) -> list[Point]:
    """Parse X,Y (on the object) or X,Y,- (off the object). Raises InputError."""
    if len(values) > MOST_POINTS:
        raise InputError(f"point: wanted at most {MOST_POINTS}, given {len(values)}")
    points = []
    for value in values:
        on = not value.endswith(",-")
        place = value.removesuffix(",-").removesuffix(",+")
        x, y = _numbers(place, 2, "point", "X,Y or X,Y,-")
        points.append((x, y, on))
    return points


def mask_png(
    body: bytes, box: Box | None, points: list[Point], method: str, max_pixels: int
) -> bytes:
    """Compute a mask and return it as PNG; runs in a thread. Raises InputError."""
    frame = decode_image(body, max_pixels)
    mask = mask_from(frame, box=box, points=points, method=method)
    return image_bytes(np.where(mask > 0, 255, 0).astype(np.uint8), ".png")
