"""Frames from a camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import cv2

from ..errors import SourceError
from .clock import Clock
from .frame_source import DEFAULT_FPS, FrameSource, SourceFrame
from .quiet import quiet_opencv


class Camera(FrameSource):
    """A camera by its index; unlimited. A frame's time is that of its arrival."""

    live = True

    def __init__(self, number: int) -> None:
        self.description = f"camera {number}"
        self._lock = threading.Lock()
        capture = _connect(number)
        if capture is None:
            raise SourceError(
                f"{self.description} cannot be opened; check that it is connected, not in use by "
                "another program, and that the number is right (the first camera is 0)"
            )
        self._capture = capture
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if fps > 0 else DEFAULT_FPS

    def __iter__(self) -> Iterator[SourceFrame]:
        index, clock, began = 0, Clock(self.tick, self.fps), time.monotonic()
        while True:
            with self._lock:
                if self._closed:
                    return
                ok, image = self._capture.read()
                stamp = round((time.monotonic() - began) / self.tick)
            if not ok:
                raise SourceError(
                    f"{self.description} gave no frame after {index} frames; check its connection "
                    "and that no other program uses it"
                )
            rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            yield SourceFrame(f"{index:05d}", index, rgb, clock.time_of(stamp))
            index += 1

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._capture.release()


def _connect(number: int) -> cv2.VideoCapture | None:
    """Open the camera with the first of OpenCV's backends that supports it.

    FFmpeg is excluded: its device code conflicts with the FFmpeg loaded by PyAV and crashes.
    """
    with quiet_opencv():  # failing backends write to the terminal
        for backend in cv2.videoio_registry.getCameraBackends() if number >= 0 else ():
            if backend != cv2.CAP_FFMPEG:
                capture = cv2.VideoCapture(number, backend)
                if capture.isOpened():
                    return capture
                capture.release()
    return None
