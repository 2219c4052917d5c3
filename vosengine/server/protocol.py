"""Binary and text messages of the stream's WebSocket, used by the server and the client.

A binary message is HEADER (type u8, encoding u8, flags u16, length u32, frame id u64,
little-endian) and two parts, the first `length` bytes long. FRAME: the frame and, if flag PROMPT is
set, its mask. ANSWER: the masks and a JSON object. Text messages are JSON objects.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from isal import isal_zlib

from ..errors import InputError
from ..rle import decode as decode_rle
from ..rle import encode as encode_rle

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SUBPROTOCOL, TOKEN_SUBPROTOCOL = "vosengine.v1", "vosengine.token."
HEADER = struct.Struct("<BBHIQ")
SIZE = struct.Struct("<II")  # (width, height) in front of raw frames and of labels
FRAME, ANSWER = 1, 2  # message types
PROMPT = 1  # a flag
RAW, JPEG, PNG = 0, 1, 2  # encodings of a frame
FRAMES = {"raw": RAW, "jpeg": JPEG, "png": PNG}
REPLIES = {"labels": 0, "rle": 1, "png": 2}  # encodings of an answer
ZLIB_LEVEL = 1  # of ISA-L; zlib's level 1 takes twelve times as long for half as many bytes more

# Close codes.
RESTARTS, TOO_SLOW, BAD_MESSAGE, WRONG_TOKEN, NO_SESSION, TAKEN_OVER = (
    1012, 1013, 4400, 4401, 4404, 4409,
)  # fmt: skip
CLOSED, INTERNAL_ERROR = 1000, 1011


@dataclass(frozen=True)
class Message:
    """Unpacked binary message; `first` and `second` are its two parts."""

    encoding: int
    flags: int
    frame_id: int
    first: memoryview
    second: memoryview


def pack(
    kind: int, encoding: int, frame_id: int, first: bytes, second: bytes = b"", flags: int = 0
) -> bytes:
    """Build a binary message."""
    return b"".join((HEADER.pack(kind, encoding, flags, len(first), frame_id), first, second))


def unpack(data: bytes, kind: int) -> Message:
    """Unpack a binary message. Raises InputError for one of another kind, or of inconsistent
    lengths."""
    if len(data) < HEADER.size:
        raise InputError(f"message: wanted a header of {HEADER.size} bytes, given {len(data)}")
    type_, encoding, flags, length, frame_id = HEADER.unpack_from(data)
    if type_ != kind:
        raise InputError(f"message: wanted type {kind}, given {type_}")
    body = memoryview(data)[HEADER.size :]
    if length > len(body):
        raise InputError(f"message: wanted {length} bytes as its header says, given {len(body)}")
    return Message(encoding, flags, frame_id, body[:length], body[length:])


@dataclass(frozen=True)
class Answer:
    """Answer for one frame.

    labels    [H, W] uint8 object ids, 0 for background
    ids       ids of the live objects
    queue_ms  time that the frame waited on the server; step_ms, duration of its step
    repeated  whether the answer was sent before
    """

    frame: int
    labels: np.ndarray
    ids: tuple[int, ...]
    queue_ms: float
    step_ms: float
    repeated: bool


def frame_message(
    number: int, frame: np.ndarray, mask: np.ndarray | None = None, encoding: str = "raw"
) -> bytes:
    """Build a FRAME: frame RGB uint8 [H, W, 3], mask [H, W] uint8 object ids, encoding a name in
    FRAMES (JPEG of quality 90). Raises InputError."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"frame: wanted uint8 [H, W, 3], given {frame.dtype} {frame.shape}")
    if encoding == "raw":
        pixels = np.ascontiguousarray(frame)
        first = b"".join((SIZE.pack(frame.shape[1], frame.shape[0]), pixels.data))
    else:
        quality = (cv2.IMWRITE_JPEG_QUALITY, 90) if encoding == "jpeg" else ()
        first = image_bytes(frame[..., ::-1], f".{encoding}", *quality)
    if mask is None:
        return pack(FRAME, FRAMES[encoding], number, first)
    return pack(FRAME, FRAMES[encoding], number, first, image_bytes(mask, ".png"), PROMPT)


def image_bytes(image: np.ndarray, kind: str, *options: int) -> bytes:
    """Encode labels [H, W] or BGR [H, W, 3], uint8, as an image file. Raises InputError."""
    try:
        done, data = cv2.imencode(kind, image, options)
    except cv2.error as error:
        raise InputError(f"image: cannot be encoded as {kind} ({error.err})") from error
    if not done or image.dtype != np.uint8:
        raise InputError(f"image: cannot be encoded as {kind}; wanted uint8, given {image.dtype}")
    return data.tobytes()


def read_answer(data: bytes) -> Answer:
    """Parse an ANSWER. Raises InputError."""
    message = unpack(data, ANSWER)
    info = json.loads(bytes(message.second))
    labels = decode_masks(message.first, message.encoding)
    times = info["queue_ms"], info["step_ms"]
    return Answer(message.frame_id, labels, tuple(info["ids"]), *times, info["repeated"])


def encode_masks(labels: np.ndarray, ids: Iterable[int], reply: str) -> bytes:
    """Encode labels uint8 [H, W] as the first part of an answer."""
    if reply == "labels":
        height, width = labels.shape
        pixels = np.ascontiguousarray(labels)
        return SIZE.pack(width, height) + isal_zlib.compress(pixels.data, ZLIB_LEVEL)
    if reply == "rle":
        size = list(labels.shape)
        masks = {str(i): {"size": size, "counts": encode_rle(labels == i)} for i in ids}
        return json.dumps(masks).encode()
    return image_bytes(labels, ".png", cv2.IMWRITE_PNG_COMPRESSION, 1)


def decode_masks(data: bytes | memoryview, encoding: int) -> np.ndarray:
    """Decode the first part of an answer to labels uint8 [H, W]; RLE without objects gives [0, 0].
    Raises InputError."""
    try:
        if encoding == REPLIES["labels"]:
            width, height = SIZE.unpack_from(data)
            pixels = zlib.decompress(data[SIZE.size :])
            return np.frombuffer(pixels, np.uint8).reshape(height, width)
        if encoding == REPLIES["rle"]:
            masks: dict[str, Any] = json.loads(bytes(data))
            sizes = [tuple(mask["size"]) for mask in masks.values()]
            labels = np.zeros(sizes[0] if sizes else (0, 0), np.uint8)
            for number, mask in masks.items():
                labels[decode_rle(mask["counts"], mask["size"])] = int(number)
            return labels
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (ValueError, KeyError, TypeError, struct.error, zlib.error, cv2.error) as error:
        raise InputError(f"answer: cannot be decoded ({error})") from error
    if image is None:
        raise InputError("answer: cannot be decoded (not a PNG)")
    return np.asarray(image, np.uint8)


def text(kind: str, **fields: Any) -> str:
    """Build a text message."""
    return json.dumps({"type": kind, **fields})


def error_text(code: str, message: str, frame: int | None = None) -> str:
    """Build an error message; frame: the id whose credit it returns."""
    return text("error", code=code, message=message, frame=frame)
