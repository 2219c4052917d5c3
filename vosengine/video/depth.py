"""Depth: conversion of high bit depths to 8 bits, with one scale for a whole stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import ConfigError, SourceError

FIRST_FRAMES = 8
"""Number of frames that the scale is chosen from."""
MOST_FIRST_FRAMES = 64
"""Maximum number, if all frames so far are uniform (a fade from black)."""
MOST_HELD_BYTES = 256 << 20
"""Maximum size of the frames held to choose the scale."""
USUAL_BITS = (8, 10, 12, 14, 16)
NARROW = 1 / 8
"""Data far from zero whose range is below this fraction of their bits' range are stretched."""
MOST_CLIPPED = 0.01
"""Maximum fraction of a frame's pixels above the scale chosen from the first frames."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A decoded frame: any real dtype, [H, W] grey or [H, W, 3] RGB, upright.

    label: the frame's name in messages.
    stamp: time stamp in ticks, or None.
    name, sar: as in SourceFrame.
    """

    label: str
    name: str
    image: np.ndarray
    stamp: int | None = None
    sar: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map of low..high to 0..255.

    bits: bit depth of the data if high follows from it, else None.
    explicit: whether the caller chose the bits.
    """

    low: float
    high: float
    bits: int | None
    explicit: bool = False

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Convert to uint8 of the same shape; clipped to 0..255, NaN becomes 0."""
        factor = 255.0 / (self.high - self.low)
        scaled = (values.astype(np.float32) - np.float32(self.low)) * np.float32(factor)
        rounded = np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255))
        return np.asarray(rounded, np.uint8)


class Depth:
    """Converts the frames of one stream to 8 bits; 8-bit frames are passed through.

    bits: bit depth of the data, 8 to 16. None: chosen from the first frames, the smallest of 8, 10,
    12, 14 and 16 that holds every value. If values are negative or fractional, or have a narrow
    range far from zero (thermal cameras), their range with a margin of half of it on both sides.

    Raises  ConfigError for bits outside 8 to 16.
    """

    def __init__(self, bits: int | None = None) -> None:
        if bits is not None and not 8 <= bits <= 16:
            raise ConfigError(f"bits: is {bits}, wanted 8 to 16, the depth of the data")
        self._bits = bits
        self._scale: Scale | None = None
        self._clipped = 0

    def facts(self) -> dict[str, Any] | None:
        """The scale for a summary, JSON-serialisable; None for 8-bit frames or before the first."""
        scale = self._scale
        if scale is None:
            return None
        return {
            "bits": scale.bits,
            "low": scale.low,
            "high": scale.high,
            "chosen_by": "--bits" if scale.explicit else "the first frames",
            "clipped_frames": self._clipped,
        }

    def flatten(self, frames: Iterator[Raw]) -> Iterator[Raw]:
        """Convert frames to uint8 RGB [H, W, 3].

        Raises  SourceError if a value exceeds the given bits, if more than MOST_CLIPPED of a
                frame's pixels exceed the chosen bits, or if bits are given for 8-bit frames.
        """
        held: list[Raw] = []
        faults: list[SourceError] = []
        for frame in _until_fault(frames, faults):
            if self._scale is None and (held or frame.image.dtype != np.uint8):
                held.append(frame)
                if self._settled(held):
                    yield from self._release(held)
            else:
                yield self._to_8_bits(frame)
        yield from self._release(held)
        if faults:
            raise faults[0]

    def _release(self, held: list[Raw]) -> Iterator[Raw]:
        if held and self._scale is None:
            self._scale = self._choose([f for f in held if f.image.dtype != np.uint8])
        for frame in held:
            yield self._to_8_bits(frame)
        held.clear()

    def _settled(self, held: list[Raw]) -> bool:
        """Whether the held frames suffice to choose the scale."""
        if self._bits is not None or len(held) >= MOST_FIRST_FRAMES:
            return True
        uniform = all(np.ptp(frame.image) == 0 for frame in held)
        size = sum(frame.image.nbytes for frame in held)
        return not uniform and (len(held) >= FIRST_FRAMES or size >= MOST_HELD_BYTES)

    def _choose(self, frames: list[Raw]) -> Scale:
        images = [frame.image for frame in frames]
        whole = all(np.issubdtype(image.dtype, np.integer) for image in images)
        if self._bits is not None:
            if not whole:
                raise SourceError(
                    f"bits: {frames[0].label} holds {images[0].dtype}, which has no count of bits; "
                    "leave --bits out"
                )
            return Scale(0.0, float((1 << self._bits) - 1), self._bits, explicit=True)
        low, high = _ends(images, 0.0, 1.0)
        first, last = _ends(images, 0.001, 0.999)
        span = last - first
        if whole and low >= 0 and high < 1 << USUAL_BITS[-1]:
            bits = next(bits for bits in USUAL_BITS if high < 1 << bits)
            if bits == USUAL_BITS[0] or not 0 < span < min(first, NARROW * (1 << bits)):
                return Scale(0.0, float((1 << bits) - 1), bits)
        elif not whole and low >= 0 and high <= 1:
            return Scale(0.0, 1.0, None)
        margin = span / 2 or 0.5
        return Scale(first - margin, last + margin, None)

    def _to_8_bits(self, frame: Raw) -> Raw:
        scale, values = self._scale, frame.image
        if values.dtype == np.uint8:
            if self._bits is not None and self._bits != 8:
                raise SourceError(
                    f"bits: {frame.label} has 8 bits a value, not {self._bits}; leave --bits out"
                )
            return _rgb(frame)
        assert scale is not None  # chosen at the first frame with more than 8 bits
        above = float(np.mean(values > scale.high))
        if above > (0.0 if scale.explicit else MOST_CLIPPED) and scale.bits is not None:
            peak = int(values.max())
            wanted = next((b for b in USUAL_BITS if peak < 1 << b), None)
            origin = "--bits says" if scale.explicit else "the first frames showed"
            advice = f"give --bits {wanted}" if wanted else "it does not fit 16 bits"
            raise SourceError(
                f"{frame.label}: holds values up to {peak}, {origin} {scale.bits} bits "
                f"(0 to {scale.high:.0f}); {advice}"
            )
        self._clipped += bool(above or np.any(values < scale.low))
        return _rgb(replace(frame, image=scale.apply(values)))


def _until_fault(frames: Iterator[Raw], faults: list[SourceError]) -> Iterator[Raw]:
    """The frames up to a SourceError, which is appended to `faults`, so that held frames can still
    be yielded."""
    try:
        yield from frames
    except SourceError as error:
        faults.append(error)


def _rgb(frame: Raw) -> Raw:
    image = frame.image
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return replace(frame, image=np.ascontiguousarray(image))


def _ends(images: list[np.ndarray], low: float, high: float) -> tuple[float, float]:
    """The low and high quantile of all finite values; (0, 0) if there are none."""
    if (low, high) != (0.0, 1.0):  # about 100,000 samples suffice; the extremes need all values
        step = max(1, sum(image.size for image in images) // 100_000)
        images = [image.ravel()[::step] for image in images]
    finite = [image[np.isfinite(image)] for image in images]
    finite = [values for values in finite if values.size]
    if not finite:
        return 0.0, 0.0
    if (low, high) == (0.0, 1.0):
        return float(min(v.min() for v in finite)), float(max(v.max() for v in finite))
    first, last = np.quantile(np.concatenate(finite), (low, high))
    return float(first), float(last)
