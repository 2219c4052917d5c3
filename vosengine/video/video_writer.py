"""Videos on disk: whole under their name, and readable before that."""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.error
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from ..errors import InputError, OutputError
from ..files import cannot_write, whole
from .frame_source import DEFAULT_TICK
from .writers import StrPath, check_frame

# Fragments of half a second, each with its own index, go to the disk as they are done: what a
# killed process or a full disk leaves can be played. The first waits for the encoder's delay.
FRAGMENTED = {
    "movflags": "delay_moov+default_base_moof",
    "frag_duration": "500000",
    "flush_packets": "1",
}


def part_of(path: Path) -> Path:
    """Where a video is while it is being written."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


class VideoWriter:
    """An H.264 mp4 that any player shows; close() (or leaving `with`) puts it under its name.

    path: ends in .mp4; fps: above 0; size: (height, width), else that of the first frame.
    An odd height or width grows by one pixel, the last row or column repeated, for 4:2:0 wants
    even sizes and cropping would lose data. A writer closed without a frame leaves no file.
    tick: what the times of frames are rounded to, in seconds; without times fps says it all.

    Until close() the video is NAME.part.mp4, which can be played as far as it goes; an earlier file
    of that name is replaced. Where the disk is full it takes the final name as it is.

    Raises OutputError when the file cannot be created or written, InputError on a bad fps.
    """

    def __init__(
        self,
        path: StrPath,
        fps: float,
        size: tuple[int, int] | None = None,
        *,
        tick: Fraction = DEFAULT_TICK,
    ) -> None:
        self.path = Path(path)
        if not (fps > 0 and math.isfinite(fps)):
            raise InputError(f"fps is {fps}, wanted a number above 0")
        if self.path.suffix.lower() != ".mp4":
            raise OutputError(f"{self.path}: wanted a name that ends in .mp4")
        self._rate = Fraction(float(fps)).limit_denominator(1001) or Fraction(1, 1001)
        self._size = size
        self._tick = tick
        self._last: int | None = None  # the newest frame's time in ticks
        self._timed = False
        self._part = part_of(self.path)
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._closed = self._failed = False
        try:  # FFmpeg opens its file at the first packet; a wrong path should show now
            self._part.unlink(missing_ok=True)  # a link there would be followed
            self._part.open("xb").close()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def write(
        self, frame: np.ndarray, time_s: float | None = None, sar: Fraction = Fraction(1)
    ) -> None:
        """Append uint8 RGB [H, W, 3].

        time_s: when it is shown, for all frames or for none; sar: width of a pixel over its height,
        of which the first frame's counts.
        Raises InputError when its size differs from the video's, or its time is not a tick later
        than that of the frame before.
        """
        check_frame(frame)
        if self._closed or self._failed:
            raise OutputError(f"{self.path}: is closed or broken; open a new writer to write more")
        self._size = self._size or (frame.shape[0], frame.shape[1])
        height, width = self._size
        if frame.shape[:2] != (height, width):
            raise InputError(
                f"{self.path}: frame is {frame.shape[:2]}, wanted {(height, width)} (height, "
                "width) as for the whole video; resize it or start another video"
            )
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(
                np.ascontiguousarray(frame), 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE
            )
        self._last = self._stamp(time_s)
        try:
            if self._container is None or self._stream is None:
                self._container, self._stream = self._begin(frame.shape[0], frame.shape[1], sar)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            if self._timed:
                picture.pts, picture.time_base = self._last, self._tick
            self._container.mux(self._stream.encode(picture))
        except av.error.FFmpegError as error:
            self._failed = True
            raise cannot_write(self.path, error) from error

    def _stamp(self, time_s: float | None) -> int | None:
        """The next frame's time in ticks; None where frames have no times."""
        last = self._last
        if self._container is None:
            self._timed = time_s is not None
        if (time_s is not None) != self._timed:
            raise InputError(
                f"{self.path}: frames with and without a time; wanted one or the other"
            )
        stamp = None if time_s is None else round(time_s / self._tick)
        if stamp is not None and last is not None and stamp <= last:
            raise InputError(
                f"{self.path}: time_s is {time_s}, wanted later than {float(last * self._tick)}, "
                f"the time of the frame before, by {self._tick} s at least"
            )
        longest = _longest_s(self._tick)
        if time_s is not None and time_s - (last or 0) * self._tick > longest:
            raise InputError(
                f"{self.path}: time_s is {time_s}, more than the {int(longest)} s after the "
                "frame before that an mp4 can hold; wanted times closer to each other, or a "
                "constant rate (--fps)"
            )
        return stamp

    def _begin(self, height: int, width: int, sar: Fraction) -> tuple[OutputContainer, VideoStream]:
        container = av.open(str(self._part.absolute()), "w", format="mp4", options=FRAGMENTED)
        stream = container.add_stream(
            "libx264", rate=self._rate, options={"crf": "20", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Say which matrix the colours went through; players guess differently by size otherwise.
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1
        context.color_range = 1
        context.sample_aspect_ratio = sar
        if self._timed:
            context.time_base = self._tick
        return container, stream

    def close(self) -> None:
        """Write what is pending, and the index; safe to call twice. OutputError on failure."""
        if self._closed:
            return
        self._closed = True
        try:
            self._end()
            if not self._failed and self._container is not None:
                with whole(self.path) as scratch:
                    _reindex(self._part, scratch)
                self._part.unlink()
                return
        except (OSError, av.error.FFmpegError) as error:
            self._keep()
            raise cannot_write(self.path, error) from error
        except OutputError:
            self._keep()
            raise
        self._keep()

    def _end(self) -> None:
        """Write what the encoder holds. Raises av.error.FFmpegError."""
        if self._container is None or self._stream is None:
            return
        try:
            if not self._failed:  # PyAV crashes when it goes on after a failed write
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def _keep(self) -> None:
        """What was written of a video that cannot be finished, under its name; or nothing."""
        with suppress(OSError):
            length = _whole_fragments(self._part)
            if not length:
                self._part.unlink()
                return
            with self._part.open("r+b") as file:
                file.truncate(length)
            self._part.replace(self.path)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _longest_s(tick: Fraction) -> Fraction:
    """The longest that FFmpeg lets a frame of an mp4 last, whose time scale is 10,000 or more."""
    scale = tick.denominator
    while scale < 10_000:
        scale *= 2
    return Fraction((1 << 31) - 1, scale)


def _reindex(part: Path, path: Path) -> None:
    """The same packets with one index, before them. Raises av.error.FFmpegError."""
    options = {"movflags": "faststart"}
    with (
        av.open(str(part.absolute())) as given,
        av.open(str(path.absolute()), "w", format="mp4", options=options) as container,
    ):
        source = given.streams.video[0]
        stream = container.add_stream_from_template(source)
        stream.time_base = source.time_base
        for packet in given.demux(source):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)


def _whole_fragments(path: Path) -> int:
    """Bytes of a fragmented mp4 up to the end of its last whole fragment; 0 without any."""
    size, at, found = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:  # the length follows, in eight bytes
                length = int.from_bytes(head[8:16], "big")
            at += max(length, 8)
            if kind == b"mdat" and at <= size:
                found = at
    return found
