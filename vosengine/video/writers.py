"""Writing of label images and drawing of overlays; files are written atomically."""

from __future__ import annotations

import io
import math
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from ..errors import InputError, OutputError
from ..files import write_whole
from .palette import DAVIS_PALETTE

StrPath = str | os.PathLike[str]

# Lighter than the labels' colours, to stand out against their blend with the frame.
_CONTOUR_COLOURS = (128 + DAVIS_PALETTE.astype(np.uint16) // 2).astype(np.uint8)


def prepare_output_folder(path: StrPath) -> Path:
    """Create a folder and its parents, and check with a probe file that it is writable.

    Raises  OutputError naming the path and the reason.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"probe")
    except FileExistsError as error:
        raise OutputError(f"{folder}: is a file, wanted a folder; choose another path") from error
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}); wanted a writable folder; choose "
            "another path or change its permissions"
        ) from error
    return folder


def write_labels(path: StrPath, labels: np.ndarray, note: str | None = None) -> None:
    """Write object ids as an indexed PNG (mode P) with the DAVIS palette, atomically.

    labels: uint8 [H, W] object ids.
    note: stored as the PNG text "Comment".

    Raises  InputError for another dtype or shape, OutputError if the file cannot be written.
    """
    write_whole(Path(path), encode_labels(labels, note))


def encode_labels(labels: np.ndarray, note: str | None = None) -> bytes:
    """Encode object ids, uint8 [H, W], as the PNG that `write_labels` writes. Raises InputError."""
    _check_labels(labels)
    image = Image.fromarray(labels)
    image.putpalette(DAVIS_PALETTE.tobytes())
    info = PngImagePlugin.PngInfo()
    if note is not None:
        info.add_text("Comment", note)
    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=info)
    return data.getvalue()


def overlay(
    frame: np.ndarray, labels: np.ndarray, *, alpha: float = 0.5, caption: str | None = None
) -> np.ndarray:
    """Draw tinted and outlined objects, and a caption at the top left, on a copy of a frame.

    frame: uint8 RGB [H, W, 3].
    labels: uint8 [H, W] object ids; 0 is not drawn.
    alpha: opacity of the tint, 0..1.

    Returns uint8 RGB [H, W, 3].

    Raises  InputError if the sizes differ, a dtype is wrong, or alpha is outside 0..1.
    """
    check_frame(frame)
    _check_labels(labels)
    if frame.shape[:2] != labels.shape:
        raise InputError(f"frame is {frame.shape[:2]}, labels {labels.shape}; wanted equal sizes")
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha is {alpha}, wanted 0 (frame only) to 1 (colour only)")
    frame, labels = np.ascontiguousarray(frame), np.ascontiguousarray(labels)
    out = frame.copy()
    if labels.any():
        triple = cv2.merge([labels, labels, labels])
        tinted = cv2.addWeighted(
            frame, 1.0 - alpha, cv2.LUT(triple, DAVIS_PALETTE[None].copy()), alpha, 0.0
        )
        cv2.copyTo(tinted, labels, out)
        # Contour: an object's pixels with another id in their 3 x 3 neighbourhood.
        cross = np.ones((3, 3), np.uint8)
        rim = cv2.compare(cv2.erode(labels, cross), cv2.dilate(labels, cross), cv2.CMP_NE)
        cv2.copyTo(cv2.LUT(triple, _CONTOUR_COLOURS[None]), cv2.bitwise_and(rim, labels), out)
    if caption:
        _draw_caption(out, caption)
    return out


def _draw_caption(image: np.ndarray, text: str) -> None:
    """Draw white text with a black outline, in place, scaled down to the image's width."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    height, width = image.shape[:2]
    (unit_width, unit_height), _ = cv2.getTextSize(text, font, 1.0, 1)
    margin = max(2, height // 60)
    scale = min(max(0.4, height / 600), (width - 2 * margin) / unit_width, height / 2 / unit_height)
    if scale <= 0:
        return
    # The outline is dilated text, not bold text, which is wider in OpenCV 5.
    text_height = math.ceil(unit_height * scale)
    strip = image[: text_height + 3 * margin]
    letters = np.zeros(strip.shape[:2], np.uint8)
    at = (margin, margin + text_height)
    cv2.putText(letters, text, at, font, scale, (255,), max(1, round(scale)), cv2.LINE_AA)
    ground = 255 - cv2.dilate(letters, np.ones((3, 3), np.uint8), iterations=max(1, margin // 4))
    faded = cv2.multiply(strip, cv2.merge([ground] * 3), scale=1 / 255)
    strip[:] = np.maximum(faded, letters[..., None])


def check_frame(frame: np.ndarray) -> None:
    """Raise InputError unless the frame is uint8 [H, W, 3] and not empty."""
    _check_array("frame", frame, "uint8 RGB [H, W, 3]", frame.ndim == 3 and frame.shape[2] == 3)


def _check_labels(labels: np.ndarray) -> None:
    _check_array("labels", labels, "uint8 [H, W]", labels.ndim == 2)


def _check_array(what: str, array: np.ndarray, wanted: str, fits: bool) -> None:
    if array.dtype != np.uint8 or not fits or not array.size:
        raise InputError(
            f"{what}: {array.dtype} {list(array.shape)}, wanted {wanted} with at least one pixel"
        )
