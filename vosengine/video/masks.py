"""Reading of label images: object ids, void, thresholds, palettes, and checks for soft masks."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ConfigError, InputError
from .images import is_image
from .names import in_order

StrPath = str | os.PathLike[str]
Labels = NDArray[np.uint8]  # [H, W] object ids, 0 is background

VOID = 255
_GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_OPAQUE = "RGBA", "LA", "PA"
_BAD_IMAGE = (
    OSError,  # unknown format or truncated data
    SyntaxError,  # invalid PNG chunk
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    MemoryError,  # corrupt length
)
_SOFT_VALUES = 3
"""Minimum number of values found only on edges for a mask to be considered soft."""
_NEARLY_WHITE = 224
"""Values from here on, without an area, are JPEG artefacts of white."""
_SHADE = 32
"""Maximum difference of the channels of a grey image after JPEG."""


@dataclass(frozen=True)
class MaskRule:
    """Interpretation of the label images of a sequence.

    void       meaning of 255. True: void; False: an object id; None: object 1 if the masks of the
               sequence contain only 0 and 255 (DAVIS 2016), else void
    threshold  1..255: the masks are soft, and pixels at least that bright are object 1; None:
               values are object ids

    Raises  ConfigError for a threshold out of range, or both arguments.
    """

    void: bool | None = None
    threshold: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is None:
            return
        if not 1 <= self.threshold <= 255:
            raise ConfigError(f"threshold: wanted 1..255, given {self.threshold}")
        if self.void is not None:
            raise ConfigError(
                "threshold: a soft mask shows one object and has no void; leave out one of the two"
            )


AS_FOUND = MaskRule()


@dataclass(frozen=True, eq=False)
class Mask:
    """A label image.

    labels  uint8 [H, W] object ids, 0 for background and void
    void    bool [H, W], void pixels; None if there are none
    """

    labels: Labels
    void: NDArray[np.bool_] | None = None


class MaskSequence:
    """The masks of one sequence; the meaning of 255 is decided once for all of them.

    files  in any order; read on demand, except those needed to decide the meaning of 255
    rule   interpretation of the values

    Raises  InputError if a file needed for that decision is not a label image.
    """

    def __init__(self, files: Sequence[Path], rule: MaskRule = AS_FOUND) -> None:
        self.files, self.rule = tuple(files), rule
        self.binary = rule.void is None and rule.threshold is None and self._is_binary()

    def read(self, path: Path) -> Mask:
        """Read one mask. Raises InputError as `read_mask`."""
        values = _read_values(path, self.rule.threshold)
        if self.rule.threshold is not None or self.rule.void is False:
            return Mask(values)
        if self.binary:
            return Mask((values > 0).astype(np.uint8))
        void = values == VOID
        return (
            Mask(np.where(void, 0, values).astype(np.uint8), void) if void.any() else Mask(values)
        )

    def _is_binary(self) -> bool:
        # Stops at the first mask with another id; only binary sequences are read completely.
        seen: set[int] = set()
        for path in self.files:
            seen |= set(np.unique(read_labels(path)).tolist())
            if seen - {0, VOID}:
                return False
        return VOID in seen


def read_mask(path: StrPath, rule: MaskRule = AS_FOUND) -> Labels:
    """Read a single mask: uint8 [H, W] object ids, 0 for background and void.

    Raises  InputError as `read_labels`; for a palette whose background is not index 0; without a
            threshold, for a mask with soft edges; with a threshold, for a coloured or transparent
            image.
    """
    return MaskSequence([Path(path)], rule).read(Path(path)).labels


def read_labels(path: StrPath) -> Labels:
    """Read object ids uint8 [H, W] from an indexed or grey image: palette indices or grey values.

    Raises  InputError if the file is missing or corrupt, is a colour image, holds several images,
            or ids outside 0..255.
    """
    return _read_ids(Path(path))[0]


def mask_files(folder: Path) -> list[Path]:
    """The masks in a folder, in natural order: its PNG files, or all images if it has none."""
    images = in_order(filter(is_image, folder.iterdir()))
    return [path for path in images if path.suffix.lower() == ".png"] or images


def _read_values(path: Path, threshold: int | None) -> Labels:
    """Object ids; with a threshold, 0 and 1."""
    if threshold is not None:
        return (_read_shade(path) >= threshold).astype(np.uint8)
    values, format_, palette = _read_ids(path)
    used = np.bincount(values.ravel(), minlength=256) > 0
    coloured = palette is not None and bool(np.ptp(palette.astype(int), axis=1).any())
    if palette is not None:
        _check_palette(path, palette, used)
    if not coloured:
        shade = values if palette is None else _shades(palette)[values]
        _check_hard(path, shade, format_)
    return values


def _read_ids(path: Path) -> tuple[Labels, str | None, NDArray[np.uint8] | None]:
    """The values, the file's format, and the palette [N, 3] of an indexed image."""
    with _opened(path) as image:
        if image.mode not in _GREY_MODES:
            raise InputError(
                f"{path}: is a {image.mode} image, wanted an indexed (palette) or grey one whose "
                "values are object ids; write it with vosengine.video.write_labels, or with "
                "Pillow: Image.fromarray(ids.astype('uint8')).save('mask.png'); a black and white "
                "image of one object can be read with a threshold (--threshold 128)"
            )
        values = np.asarray(image)
        colours = image.getpalette("RGB") if image.mode == "P" else None
        palette = None if colours is None else _palette(colours)
        format_ = image.format
    if values.size and (values.max() > 255 or values.min() < 0):
        raise InputError(
            f"{path}: holds values from {values.min()} to {values.max()}, wanted object ids "
            "0 to 255; renumber the objects"
        )
    return values.astype(np.uint8), format_, palette


def _read_shade(path: Path) -> Labels:
    """Brightness 0..255 of every pixel of a grey, black and white, or opaque image."""
    with _opened(path) as image:
        if image.mode in _OPAQUE:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
            if alpha.min() < 255:
                raise InputError(
                    f"{path}: has transparent pixels, so its brightness is ambiguous; wanted an "
                    "opaque mask, write its alpha as a grey image"
                )
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(np.int64)
            return np.clip(values // 257 if values.max() > 255 else values, 0, 255).astype(np.uint8)
        if image.mode not in ("1", "L", "P", "RGB", *_OPAQUE):
            raise InputError(f"{path}: is a {image.mode} image; wanted a grey mask")
        pixels = np.asarray(image.convert("RGB"))
    if np.ptp(pixels.astype(np.int16), axis=2).max() > _SHADE:
        raise InputError(
            f"{path}: is coloured, so a threshold cannot be applied; wanted a grey mask of one "
            "object, or an indexed one with ids"
        )
    return _shades(pixels)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Context manager: the loaded Pillow image of a file. Raises InputError."""
    with ExitStack() as stack:
        try:
            image = stack.enter_context(Image.open(path))
            count = getattr(image, "n_frames", 1)
            image.load()
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; wanted a label image") from error
        except _BAD_IMAGE as error:
            raise InputError(
                f"{path}: not a readable image ({error}); wanted a complete PNG"
            ) from error
        if count > 1:
            raise InputError(f"{path}: holds {count} images, wanted one mask a file")
        yield image


def _palette(colours: list[int]) -> NDArray[np.uint8]:
    """The palette, padded to [256, 3] with the colour of index 0 (padding with black would look
    like an object in black)."""
    listed = np.array(colours, np.uint8).reshape(-1, 3)
    missing = np.repeat(listed[:1], 256 - len(listed), axis=0)
    return np.concatenate([listed, missing])


def _shades(colours: NDArray[np.uint8]) -> Labels:
    """Brightness (ITU-R BT.601) of colours [..., 3]."""
    shades: Labels = np.rint(colours.astype(np.float32) @ (0.299, 0.587, 0.114)).astype(np.uint8)
    return shades


def _check_palette(path: Path, palette: NDArray[np.uint8], used: NDArray[np.bool_]) -> None:
    """Raise InputError if index 0 is not black but an object is: programs that generate palettes
    sort colours by frequency, so that indices are not ids."""
    black = [i for i in np.flatnonzero(used).tolist() if not palette[i].any()]
    if black and palette[0].any():
        colour = tuple(palette[0].tolist())
        raise InputError(
            f"{path}: its palette has {colour} at index 0, which would be the background, and "
            f"black at index {black[0]}, which would be an object: it looks as if a program had "
            "sorted the colours; wanted object ids as indices, 0 for the background. Write the "
            "mask again from its colours: ids = np.zeros((height, width), 'uint8'); "
            "ids[(rgb == colour).all(2)] = 1 ...; vosengine.video.write_labels(path, ids)"
        )


def _check_hard(path: Path, shade: Labels, format_: str | None) -> None:
    """Raise InputError for a soft mask: values that occur only between a darker and a brighter
    neighbour and never fill a 3 x 3 area, unlike object ids."""
    square = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(shade, square), cv2.dilate(shade, square)
    between = (shade > 0) & (shade < VOID)
    count, ramp, inside = (
        np.bincount(shade[chosen], minlength=256)
        for chosen in (between, between & (low < shade) & (shade < high), low == high)
    )
    present = int(np.count_nonzero(count))
    soft = int(np.count_nonzero((count > 0) & (inside == 0) & (2 * ramp >= count)))
    many = soft >= _SOFT_VALUES and 2 * soft >= present
    edge = soft > 0 and soft == present and inside[VOID] > 0  # 0, one grey and 255
    ringing = not inside[1:VOID].any() and count[_NEARLY_WHITE:].any()
    if not (many or edge or ringing or (format_ == "JPEG" and present)):
        return
    jpeg = "; JPEG does not keep ids" if format_ == "JPEG" else ""
    raise InputError(
        f"{path}: holds {present} values between 0 and 255, most of them without an area: it "
        f"looks like a mask with soft or JPEG edges, which are no object ids{jpeg}. Of one object, "
        "give a threshold (--threshold 128); of several, write the ids without smoothing "
        "(resized by nearest neighbour, stored as PNG)"
    )
