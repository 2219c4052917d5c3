"""What a stream takes next, whichever engine it runs on."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError
from .types import Geometry, Size


@dataclass(frozen=True)
class StreamRules:
    """What a model asks of its frames and masks."""

    model: str
    needs_mask: bool
    takes_mask: bool

    def check(
        self, size: Size, geometry: Geometry | None, *, flushed: bool, prompted: bool
    ) -> None:
        """Raise InputError unless a frame of that size, with a mask or without, may come next.

        geometry  of the stream so far; None where this is its first frame
        """
        if flushed:
            raise InputError("step: the stream was flushed; call reset() to begin another")
        if geometry is not None and size != geometry.frame:
            raise InputError(
                f"frame: the stream is {geometry.frame[0]} x {geometry.frame[1]}, given "
                f"{size[0]} x {size[1]}; resize the frame, or call reset() to begin another stream"
            )
        if prompted and not self.takes_mask:
            raise InputError(
                f"mask: {self.model} finds the foreground by itself and takes none; leave it out"
            )
        if geometry is None and self.needs_mask and not prompted:
            raise InputError(
                f"mask: {self.model} needs one with the first frame; it says what to follow"
            )
