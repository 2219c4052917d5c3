"""Frames and masks out of messages: sizes are read and checked before anything is decoded."""

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
_GREY, _PALETTE = 0, 3  # colour types of a PNG
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}  # JPEG markers that stand alone
_BAD_IMAGE = (OSError, SyntaxError, ValueError, struct.error, zlib.error, MemoryError)


def decode_frame(data: Bytes, encoding: int, max_pixels: int) -> np.ndarray:
    """A frame [H, W, 3] uint8 RGB; EXIF orientation is followed.

    Raises  InputError for an unknown encoding, more than `max_pixels`, and data that is damaged,
            cut short, or not of its encoding.
    """
    if encoding == RAW:
        return _raw(data, max_pixels)
    if encoding not in (JPEG, PNG):
        raise InputError(f"frame: wanted encoding 0 (raw), 1 (JPEG) or 2 (PNG), given {encoding}")
    size = jpeg_size(data) if encoding == JPEG else png_size(data)
    _check_pixels("frame", size, max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise InputError(f"frame: cannot be decoded ({error.err})") from error
    if image is None:
        raise InputError("frame: cannot be decoded; it is damaged or cut short, send it again")
    return np.asarray(image, np.uint8)


def decode_image(data: Bytes, max_pixels: int) -> np.ndarray:
    """`decode_frame` of a JPEG or a PNG, whichever it is."""
    return decode_frame(data, PNG if bytes(data[:8]) == _PNG_START else JPEG, max_pixels)


def decode_mask(data: Bytes, frame: Size) -> np.ndarray:
    """A mask of object ids uint8 [H, W] out of an 8-bit PNG, grey or with a palette, of the frame's
    (H, W). Raises InputError."""
    size = png_size(data)
    depth, colour = data[24], data[25]
    if colour not in (_GREY, _PALETTE) or depth > 8:
        raise InputError(
            "mask: wanted a PNG of 8 bits, grey or with a palette, whose values are object ids"
        )
    if size != frame:
        raise InputError(f"mask: wanted the frame's size {list(frame)}, given {list(size)}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image).astype(np.uint8)
    except _BAD_IMAGE as error:
        raise InputError(f"mask: cannot be decoded ({error}); send it again") from error


def png_size(data: Bytes) -> Size:
    """(height, width) as a PNG's header says. Raises InputError where there is none."""
    if len(data) < 33 or bytes(data[:8]) != _PNG_START or bytes(data[12:16]) != b"IHDR":
        raise InputError("image: is no PNG")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def jpeg_size(data: Bytes) -> Size:
    """(height, width) as a JPEG's frame header says. Raises InputError where there is none."""
    if len(data) < 4 or bytes(data[:2]) != b"\xff\xd8":
        raise InputError("image: is no JPEG")
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            break
        marker = data[place + 1]
        if marker == 0xFF:  # fills
            place += 1
            continue
        if marker in _NO_LENGTH:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if length < 8 or place + 9 > len(data):
                break
            height, width = struct.unpack_from(">HH", data, place + 5)
            return height, width
        if marker in (0xD9, 0xDA) or length < 2:
            break
        place += 2 + length
    raise InputError("image: is a JPEG without a size; it is damaged or cut short, send it again")


def _raw(data: Bytes, max_pixels: int) -> np.ndarray:
    if len(data) < SIZE.size:
        raise InputError("frame: wanted width and height, 4 bytes each, before the pixels")
    width, height = SIZE.unpack_from(data)
    _check_pixels("frame", (height, width), max_pixels)
    if len(data) != SIZE.size + 3 * height * width:
        raise InputError(
            f"frame: wanted {3 * height * width} bytes for {width} x {height} pixels, "
            f"given {len(data) - SIZE.size}"
        )
    pixels = np.frombuffer(data, np.uint8, offset=SIZE.size)
    return pixels.reshape(height, width, 3)


def _check_pixels(what: str, size: Size, most: int) -> None:
    height, width = size
    if height == 0 or width == 0 or height * width > most:
        raise InputError(
            f"{what}: is {width} x {height} pixels, wanted 1 to {most} of them; make it smaller"
        )
