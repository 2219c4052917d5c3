"""Clock: strictly increasing presentation times from a container's time stamps."""

from __future__ import annotations

from fractions import Fraction

CLOCK_RESET_S = 1.0
"""A larger step back is treated as a reset of the sender's clock, a smaller one as reordering."""


class Clock:
    """Converts the time stamps of a stream to strictly increasing times.

    tick: unit of the time stamps, in seconds.
    fps: rate for frames without a time stamp.
    mended: number of stamps that were missing or not later than the one before.
    """

    def __init__(self, tick: Fraction, fps: float) -> None:
        self.mended = 0
        self._tick = tick
        self._step = max(1, round(1 / (fps * tick)))
        self._reset = CLOCK_RESET_S / tick
        self._last: int | None = None
        self._shift = 0
        self._untimed = False

    def time_of(self, stamp: int | None) -> float | None:
        """Time of the next frame in seconds; stamp: its time stamp in ticks, or None.

        None for all frames if the first frame has no time stamp.
        """
        if self._last is None:
            self._untimed = self._untimed or stamp is None
            if self._untimed or stamp is None:
                return None
            self._shift = max(0, -stamp)
            self._last = stamp + self._shift
        else:
            self._last = self._next(self._last, stamp)
        return float(self._last * self._tick)

    def _next(self, last: int, stamp: int | None) -> int:
        if stamp is not None and stamp + self._shift > last:
            return stamp + self._shift
        self.mended += 1
        if stamp is None:
            return last + self._step
        if last - stamp - self._shift <= self._reset:
            return last + 1
        self._shift = last + self._step - stamp
        return last + self._step
