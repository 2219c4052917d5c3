"""Decode the frames and masks of messages; sizes are checked before decoding."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from ..errors import InputError
from ..types import Size
from .protocol import JPEG, PNG, RAW, SIZE

Bytes = bytes | memoryview
_PNG_START = b"\x89PNG\r\n\x1a\n"
_DEPTH = 24  # offset of a PNG's bit depth
_BAD_IMAGE = (OSError, SyntaxError, ValueError, struct.error, zlib.error, MemoryError)


def decode_frame(data: Bytes, encoding: int, max_pixels: int) -> np.ndarray:
    """Decode a frame to RGB uint8 [H, W, 3]; EXIF orientation is applied.

    Raises  InputError for an unknown encoding, more than `max_pixels`, and data that is damaged,
            truncated or in another encoding.
    """
    if encoding == RAW:
        return _raw(data, max_pixels)
    if encoding not in (JPEG, PNG):
        raise InputError(f"frame: wanted encoding 0 (raw), 1 (JPEG) or 2 (PNG), given {encoding}")
    with _opened("frame", data, "JPEG" if encoding == JPEG else "PNG") as header:
        _check_pixels((header.height, header.width), max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise InputError(f"frame: cannot be decoded ({error.err})") from error
    if image is None:
        raise InputError("frame: cannot be decoded; it is damaged or truncated; send it again")
    return np.asarray(image, np.uint8)


def decode_image(data: Bytes, max_pixels: int) -> np.ndarray:
    """Decode a JPEG or PNG as `decode_frame` does; the format is detected."""
    return decode_frame(data, PNG if bytes(data[:8]) == _PNG_START else JPEG, max_pixels)


def decode_mask(data: Bytes, frame: Size) -> np.ndarray:
    """Decode a mask of object ids, uint8 [H, W], from an 8-bit grey or palette PNG of the frame's
    size (H, W). Raises InputError."""
    with _opened("mask", data, "PNG") as image:
        # Pillow rescales the values of a 2- or 4-bit grey PNG.
        if image.mode not in ("L", "P") or (image.mode == "L" and data[_DEPTH] != 8):
            raise InputError(
                "mask: wanted an 8-bit PNG, grey or with a palette, whose values are object ids"
            )
        if (image.height, image.width) != frame:
            given = [image.height, image.width]
            raise InputError(f"mask: wanted the frame's size {list(frame)}, given {given}")
        try:
            return np.asarray(image).astype(np.uint8)
        except _BAD_IMAGE as error:
            raise InputError(f"mask: cannot be decoded ({error}); send it again") from error


def _opened(what: str, data: Bytes, kind: str) -> Image.Image:
    """Open an image: its header is read, its pixels are not. Raises InputError."""
    try:
        return Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError as error:
        raise InputError(f"{what}: is too large ({error}); make it smaller") from error
    except _BAD_IMAGE as error:
        raise InputError(
            f"{what}: not a valid {kind} ({error}); damaged, truncated or another format"
        ) from error


def _raw(data: Bytes, max_pixels: int) -> np.ndarray:
    if len(data) < SIZE.size:
        raise InputError("frame: wanted width and height, 4 bytes each, before the pixels")
    width, height = SIZE.unpack_from(data)
    _check_pixels((height, width), max_pixels)
    if len(data) != SIZE.size + 3 * height * width:
        raise InputError(
            f"frame: wanted {3 * height * width} bytes for {width} x {height} pixels, "
            f"given {len(data) - SIZE.size}"
        )
    pixels = np.frombuffer(data, np.uint8, offset=SIZE.size)
    return pixels.reshape(height, width, 3)


def _check_pixels(size: Size, most: int) -> None:
    height, width = size
    if height == 0 or width == 0 or height * width > most:
        raise InputError(
            f"frame: is {width} x {height} pixels, wanted 1 to {most} of them; make it smaller"
        )
