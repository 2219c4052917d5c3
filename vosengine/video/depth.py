"""Pixels deeper than 8 bits: one scale to 8 bits for a whole stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import ConfigError, SourceError

FIRST_FRAMES = 8
"""So many frames choose the scale."""
MOST_FIRST_FRAMES = 64
"""So many, where all before are of one even value (a fade from black)."""
MOST_HELD_BYTES = 256 << 20
USUAL_BITS = (8, 10, 12, 14, 16)
NARROW = 1 / 8
"""Data that lie far from zero and take up less than this share of their bits are stretched."""
MOST_CLIPPED = 0.01
"""Share of a frame's pixels above the bits that the first frames showed; more is an error."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A frame as it was decoded: any real dtype, [H, W] grey or [H, W, 3] RGB, upright.

    label: says which frame it is in messages; name, stamp (in ticks) and sar: as in SourceFrame.
    """

    label: str
    name: str
    image: np.ndarray
    stamp: int | None = None
    sar: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Scale:
    """low becomes 0 and high 255. bits: of the data, where high follows from them, else None."""

    low: float
    high: float
    bits: int | None
    given: bool = False

    def apply(self, values: np.ndarray) -> np.ndarray:
        """uint8 of the same shape; below low is 0, above high 255, and what is no number 0."""
        factor = 255.0 / (self.high - self.low)
        scaled = (values.astype(np.float32) - np.float32(self.low)) * np.float32(factor)
        rounded = np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255))
        return np.asarray(rounded, np.uint8)


class Depth:
    """Brings the frames of one stream to 8 bits; frames of 8 bits pass as they are.

    bits: how many the data have, 8 to 16; None chooses by the first frames: the fewest of 8, 10,
    12, 14 and 16 that hold every value; or where the values are narrow and far from zero, as
    thermal cameras give them, are negative or have a fraction, the range that they take up with a
    margin of half of it on both sides.

    Raises  ConfigError: bits outside 8 to 16.
    """

    def __init__(self, bits: int | None = None) -> None:
        if bits is not None and not 8 <= bits <= 16:
            raise ConfigError(f"bits: is {bits}, wanted 8 to 16, the depth of the data")
        self._bits = bits
        self._scale: Scale | None = None
        self._clipped = 0

    def facts(self) -> dict[str, Any] | None:
        """The scale as JSON, once it is known; None for frames of 8 bits."""
        scale = self._scale
        if scale is None:
            return None
        return {
            "bits": scale.bits,
            "low": scale.low,
            "high": scale.high,
            "chosen_by": "--bits" if scale.given else "the first frames",
            "clipped_frames": self._clipped,
        }

    def flatten(self, frames: Iterator[Raw]) -> Iterator[Raw]:
        """The same frames as uint8 RGB [H, W, 3].

        Raises  SourceError: a value above the bits that were given, or many above those that the
                first frames showed; or bits given for frames that have 8.
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
        """Whether the frames so far are enough to choose the scale by."""
        if self._bits is not None or len(held) >= MOST_FIRST_FRAMES:
            return True
        even = all(np.ptp(frame.image) == 0 for frame in held)
        size = sum(frame.image.nbytes for frame in held)
        return not even and (len(held) >= FIRST_FRAMES or size >= MOST_HELD_BYTES)

    def _choose(self, frames: list[Raw]) -> Scale:
        images = [frame.image for frame in frames]
        whole = all(np.issubdtype(image.dtype, np.integer) for image in images)
        if self._bits is not None:
            if not whole:
                raise SourceError(
                    f"bits: {frames[0].label} holds {images[0].dtype}, which has no count of bits; "
                    "leave --bits out"
                )
            return Scale(0.0, float((1 << self._bits) - 1), self._bits, given=True)
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
        assert scale is not None  # chosen by the first frame that is deeper
        above = float(np.mean(values > scale.high))
        if above > (0.0 if scale.given else MOST_CLIPPED) and scale.bits is not None:
            peak = int(values.max())
            wanted = next((b for b in USUAL_BITS if peak < 1 << b), None)
            whose = "--bits says" if scale.given else "the first frames showed"
            advice = f"give --bits {wanted}" if wanted else "it does not fit 16 bits"
            raise SourceError(
                f"{frame.label}: holds values up to {peak}, {whose} {scale.bits} bits "
                f"(0 to {scale.high:.0f}); {advice}"
            )
        self._clipped += bool(above or np.any(values < scale.low))
        return _rgb(replace(frame, image=scale.apply(values)))


def _until_fault(frames: Iterator[Raw], faults: list[SourceError]) -> Iterator[Raw]:
    """The frames; a SourceError ends them and is put into `faults`, so that those that are held
    can still be answered."""
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
    """Those quantiles of all values that are numbers; (0, 0) where there are none."""
    if (low, high) != (0.0, 1.0):  # some 100,000 values tell; the extremes need all
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
