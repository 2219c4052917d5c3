"""Network addresses as frame sources, with reconnection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError, SourceError
from .container import BrokenOff, Video
from .depth import Depth
from .frame_source import FrameSource, SourceFrame

FIRST_WAIT_S = 0.5
"""Delay before the first reconnection; doubled for each further one, up to LONGEST_WAIT_S."""
LONGEST_WAIT_S = 30.0
STEADY_S = 60.0
"""Uninterrupted time after which the number of tries is reset."""


def open_address(address: str, bits: int | None = None, reconnect: int = 0) -> FrameSource:
    """Open a network address.

    bits: as in `Depth`.
    reconnect: maximum number of reconnections.

    Raises  ConfigError if reconnect is below 0; SourceError if the address cannot be opened.
    """
    if reconnect < 0:
        raise ConfigError(f"reconnect: is {reconnect}, wanted 0 or more")

    depth = Depth(bits)  # one scale for all connections

    def connect() -> Video:
        return Video(address, address=True, depth=depth)

    return Reconnecting(connect, reconnect) if reconnect else connect()


class Reconnecting(FrameSource):
    """A network source that reconnects up to `tries` times.

    A remote file continues at the next frame. A live stream continues with the current frame:
    indices are consecutive, and times include the gap.
    """

    def __init__(self, connect: Callable[[], Video], tries: int) -> None:
        self._connect, self._tries = connect, tries
        self._left = tries
        self._stop = threading.Event()
        self._gaps: list[dict[str, Any]] = []
        self._video = first = connect()
        self.description, self.live, self.length = first.description, first.live, first.length
        self.fps, self.tick = first.fps, first.tick

    def facts(self) -> dict[str, Any]:
        return {**self._video.facts(), "gaps": [*self._gaps]}

    def close(self) -> None:
        self._closed = True
        self._stop.set()
        self._video.close()

    def __iter__(self) -> Iterator[SourceFrame]:
        last: SourceFrame | None = None
        away: _Away | None = None
        shift_s = 0.0
        while True:
            fault: BrokenOff | None = None
            opened = time.monotonic()
            try:
                for frame in self._video:
                    if self._video.finite and last is not None and frame.index <= last.index:
                        continue  # read before the interruption
                    if away is not None:
                        gap_s = time.monotonic() - away.since
                        self._gaps.append(self._gap(last, away, gap_s))
                        shift_s = self._shift(last, frame, gap_s)
                        away = None
                    if time.monotonic() - opened > STEADY_S:
                        self._left = self._tries
                    last = _going_on(last, frame, shift_s)
                    yield last
            except BrokenOff as error:
                fault = error
            if self._closed or (fault is None and self._video.finite):
                return
            away = away or _Away(time.monotonic(), fault.reason if fault else "the sender ended it")
            if not self._open_again(fault, away):
                return

    def _open_again(self, fault: BrokenOff | None, away: _Away) -> bool:
        """Reconnect. Returns False if the source was closed, or is a live stream that ended
        normally and did not return. Raises SourceError if a broken connection was not restored."""
        why: SourceError | None = fault
        while self._left and not self._stop.wait(min(FIRST_WAIT_S * 2**away.tries, LONGEST_WAIT_S)):
            self._left -= 1
            away.tries += 1
            try:
                self._video = self._connect()
            except SourceError as error:
                why = error
                continue
            if self._closed:
                self._video.close()
            return True
        if self._closed or fault is None:
            return False
        raise SourceError(f"{why} (reconnected {self._tries - self._left} times, as allowed)")

    def _gap(self, last: SourceFrame | None, away: _Away, gap_s: float) -> dict[str, Any]:
        return {
            "after_frame": None if last is None else last.index,
            "seconds": round(gap_s, 3),
            "tries": away.tries,
            "frames_lost": 0 if self._video.finite else None,  # None: an unknown number
            "reason": away.reason,
        }

    def _shift(self, last: SourceFrame | None, frame: SourceFrame, gap_s: float) -> float:
        """Offset in seconds that makes a live stream's times continue after the gap: the sender's
        clock may have been reset."""
        if self._video.finite or last is None or last.time_s is None or frame.time_s is None:
            return 0.0
        wanted = last.time_s + 1 / self.fps + gap_s - frame.time_s
        return float(round(wanted / self.tick) * self.tick)


@dataclass(slots=True)
class _Away:
    """A current interruption: its start by time.monotonic(), reason and number of attempts."""

    since: float
    reason: str
    tries: int = 0


def _going_on(last: SourceFrame | None, frame: SourceFrame, shift_s: float) -> SourceFrame:
    index = 0 if last is None else last.index + 1
    time_s = None if frame.time_s is None else frame.time_s + shift_s
    return replace(frame, name=f"{index:05d}", index=index, time_s=time_s)
