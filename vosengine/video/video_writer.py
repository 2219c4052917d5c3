"""VideoWriter: H.264 mp4 files, renamed when complete and playable while being written."""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

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

# Fragments of half a second with their own index are flushed as they are completed, so that the
# file is playable after a crash or on a full disk. The first one waits for the encoder's delay.
FRAGMENTED = {
    "movflags": "delay_moov+default_base_moof",
    "frag_duration": "500000",
    "flush_packets": "1",
}


def part_of(path: Path) -> Path:
    """The path of a video while it is being written: NAME.part.mp4."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


class VideoWriter:
    """Writer of an H.264 mp4 (yuv420p, BT.709); a context manager.

    path: ends in .mp4.
    fps: frame rate, above 0; used if frames have no times.
    size: (height, width); None: that of the first frame. Odd sides are padded by one repeated row
    or column, since 4:2:0 requires even sides.
    tick: resolution of frame times, in seconds.

    Until close() the video is NAME.part.mp4, which is playable; close() renames it, replacing an
    earlier file. If writing fails, what was written is renamed too. Without a frame no file is
    left.

    Raises  OutputError if the file cannot be created or written, or its name does not end in .mp4;
            InputError for an invalid fps.
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
        try:  # FFmpeg opens its file at the first packet; report a wrong path now
            self._part.unlink(missing_ok=True)  # an existing link would be followed
            self._part.open("xb").close()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def write(
        self, frame: np.ndarray, time_s: float | None = None, sar: Fraction = Fraction(1)
    ) -> None:
        """Append a frame.

        frame: uint8 RGB [H, W, 3].
        time_s: presentation time in seconds, for all frames or for none.
        sar: sample aspect ratio, width of a pixel over its height; only the first frame's is used.

        Raises  InputError if the frame's size differs from the video's, or its time is not at least
                a tick later than the previous one; OutputError if it cannot be written.
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
        """The next frame's time in ticks; None if frames have no times. Raises InputError."""
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
        # State the colour matrix; players otherwise guess it from the frame size.
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1
        context.color_range = 1
        context.sample_aspect_ratio = sar
        if self._timed:
            context.time_base = self._tick
        return container, stream

    def close(self) -> None:
        """Write pending frames and the index; may be called twice. Raises OutputError."""
        if self._closed:
            return
        self._closed = True
        try:
            self._end()
            if not self._failed and self._container is not None:
                with whole(self.path) as scratch:
                    _reindex(self._part, scratch)
                self._part.unlink()
        except (OSError, av.error.FFmpegError) as error:
            raise cannot_write(self.path, error) from error
        finally:
            self._keep()

    def _end(self) -> None:
        """Flush the encoder and close the container. Raises av.error.FFmpegError."""
        if self._container is None or self._stream is None:
            return
        try:
            if not self._failed:  # PyAV crashes if used after a failed write
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def _keep(self) -> None:
        """Give what is left of an unfinished video its final name, cut to whole fragments; remove
        it if empty."""
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

    def __exit__(self, *_: object) -> None:
        self.close()


def _longest_s(tick: Fraction) -> Fraction:
    """Maximum duration of a frame in FFmpeg's mp4, whose time scale is at least 10,000."""
    scale = tick.denominator
    while scale < 10_000:
        scale *= 2
    return Fraction((1 << 31) - 1, scale)


def _reindex(part: Path, path: Path) -> None:
    """Copy the packets to a file with a single index at the front. Raises av.error.FFmpegError."""
    options = {"movflags": "faststart"}
    with (
        av.open(str(part.absolute())) as fragmented,
        av.open(str(path.absolute()), "w", format="mp4", options=options) as container,
    ):
        source = fragmented.streams.video[0]
        stream = container.add_stream_from_template(source)
        stream.time_base = source.time_base
        for packet in fragmented.demux(source):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)


def _whole_fragments(path: Path) -> int:
    """Length in bytes of a fragmented mp4 up to the end of its last complete fragment, or 0."""
    size, at, end = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:  # 64-bit length follows
                length = int.from_bytes(head[8:16], "big")
            at += max(length, 8)
            if kind == b"mdat" and at <= size:
                end = at
    return end
