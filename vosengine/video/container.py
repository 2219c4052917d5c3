"""Frames of a video file or network address, with detection of missing and corrupt data."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.stream import VideoStream

from ..errors import SourceError
from .clock import Clock
from .depth import Depth, Raw
from .frame_source import DEFAULT_FPS, FrameSource, SourceFrame, without_password

STREAM_TIMEOUT_S = 10.0
"""Timeout for opening a network address, and for each packet."""
FINEST_TICK = Fraction(1, 1_000_000)
"""Finer time bases (Matroska may have nanoseconds) are rounded to this, the limit of mp4."""
MAX_BAD_PACKETS = 100
"""Consecutive undecodable packets after which a live stream is considered broken."""


@dataclass(slots=True)
class _Tally:
    """Amount of data read so far, compared with the container's header at the end."""

    packets: int = 0
    hidden: int = 0
    frames: int = 0
    end_s: float = 0.0


class BrokenOff(SourceError):
    """A video ended prematurely. reason: FFmpeg's message, or what is missing."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Video(FrameSource):
    """A video file or a network address, read with PyAV.

    location: path or address.
    address: whether it is an address.
    depth: conversion of 16-bit pixels to 8 bits.
    finite: it is a file, local or remote, which starts over when it is opened again.

    Raises  SourceError if it cannot be opened or has no video stream.
    """

    def __init__(self, location: str, *, address: bool, depth: Depth | None = None) -> None:
        self.description = without_password(location)
        self._read = False
        self._tally = _Tally()
        self._lock = threading.Lock()
        self._depth = depth or Depth()
        self._address = address
        self._container = _open_container(location, address, self.description)
        stream = self._container.streams.best("video")
        # FFmpeg treats the cover picture of an audio file as a video stream.
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            self._container.close()
            raise SourceError(f"{self.description}: holds no video stream; wanted a video")
        self._stream = stream
        self._frames = self._decode()
        # A file at an HTTP address has a duration and is read on demand: not live.
        on_demand = location.lower().startswith("http") and self._container.duration is not None
        self.live = address and not on_demand
        # Frame threading delays frames: good for a file's throughput, bad for live latency.
        stream.thread_type = "SLICE" if self.live else "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else DEFAULT_FPS
        self.length = None if self.live else stream.frames or None
        lists = self._container.format.name in ("hls", "dash")  # size of the playlist only
        self.finite = not self.live or (self._container.size > 0 and not lists)
        self._base = stream.time_base or Fraction(0)
        self.tick = max(self._base, FINEST_TICK) if self._base else self.tick
        self._clock = Clock(self.tick, self.fps)
        self._sar = Fraction(stream.sample_aspect_ratio or 1)

    def __iter__(self) -> Iterator[SourceFrame]:
        if self._read or self._closed:
            raise SourceError(f"{self.description} was already read or closed; open it again")
        self._read = True
        for index, raw in enumerate(self._depth.flatten(self._decoded())):
            time_s = self._clock.time_of(raw.stamp)
            yield SourceFrame(raw.name, index, raw.image, time_s, raw.sar)

    def facts(self) -> dict[str, Any]:
        return {"depth": self._depth.facts(), "mended_times": self._clock.mended}

    def _decoded(self) -> Iterator[Raw]:
        """All frames, counted. Raises SourceError at the first fault."""
        fault = None
        try:
            while True:
                # PyAV crashes if a container is closed while in use; `close` takes the lock too.
                with self._lock:
                    frame = next(self._frames, None)
                    if frame is None:
                        break
                    raw = self._raw(frame)
                self._tally.frames += 1
                yield raw
            if not self._closed:
                fault = self._shortfall()
        except av.error.FFmpegError as error:
            fault = None if self._is_whole() else _reason(error)
        finally:
            self.close()
        if fault:
            raise self._broken(fault)

    def _raw(self, frame: av.VideoFrame) -> Raw:
        number = self._tally.frames
        image, turned = _upright(frame.to_ndarray(format=_array_format(frame)), frame)
        sar = 1 / self._sar if turned else self._sar
        label = f"{self.description}, frame {number}"
        return Raw(label, f"{number:05d}", image, self._stamp(frame), sar)

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        """The frame's time in ticks, relative to the container's start time."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None:
            return None
        start = Fraction(self._container.start_time or 0, av.time_base)
        return round((stamp * self._base - start) / self.tick)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._frames.close()
                self._container.close()

    def _decode(self) -> Generator[av.VideoFrame]:
        """Decode all frames up to the end or the first fault (FFmpegError or SourceError)."""
        tally, bad_packets = self._tally, 0
        for packet in self._packets():
            if packet is None:
                yield from self._stream.decode(None)
                continue
            if packet.is_corrupt and not self.live:
                # Flush intact frames from the decoder, but only those before the lost one: later
                # ones would get wrong indices. The lost frame's pts is at least this dts.
                flushed = self._stream.decode(None)
                yield from (f for f in flushed if f.pts is not None and f.pts < (packet.dts or 0))
                raise self._broken("the data is cut short or damaged")
            if packet.size or packet.dts is not None:
                tally.packets += 1
                tally.hidden += packet.is_discard
                end = (packet.pts or 0) + (packet.duration or 0)
                tally.end_s = max(tally.end_s, float(end * self._base))
                if not packet.size:  # a skipped frame; the decoder would take it for the end
                    continue
            try:
                frames = self._stream.decode(packet)
                bad_packets = 0
            except av.error.InvalidDataError:
                # A live stream is joined midway and may lose packets: continue with the next one.
                bad_packets += 1
                if not self.live or bad_packets >= MAX_BAD_PACKETS:
                    raise
                continue
            for frame in frames:
                if frame.is_corrupt and not self.live:
                    raise self._broken("the data is cut short or damaged")
                yield frame

    def _packets(self) -> Iterator[av.Packet[Any] | None]:
        """The stream's packets. If a connection breaks, None (flush the decoder, its frames are
        intact), then the error."""
        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError:
            if self._address:
                yield None
            raise

    def _is_whole(self) -> bool:
        """Whether all frames or seconds of the header were read when the connection broke, as with
        a server that sends no length."""
        tally, promised, seconds = self._tally, self._stream.frames, self._promised_seconds()
        if not self._address or self.live or not tally.frames:
            return False
        return 0 < promised <= tally.frames or 0 < seconds <= tally.end_s

    def _shortfall(self) -> str | None:
        """What is missing compared with the header; None if nothing is, or the source is live.

        Decoder threads swallow errors in the last packets, and most demuxers treat missing data as
        the end, so a truncated file may end without any error.
        """
        tally, format_name = self._tally, self._container.format.name
        if not tally.frames:
            return "nothing to decode"
        if self.live:
            return None
        promised = self._stream.frames
        if "mp4" in format_name.split(","):
            # Trailing edits shorten FFmpeg's index, not the frame count of the header; all
            # indexed frames must be present.
            promised, slack = min(promised, len(self._stream.index_entries)), 0
        else:
            slack = 1 + promised // 50  # AVI headers also count dropped, empty frames
        if tally.packets < promised - slack:
            return f"{promised} frames were promised, data for {tally.packets} is there"
        # Harmless: packets hidden by an edit list, invisible reference frames (VP8: about one in
        # 15), and frames whose references lie before a cut.
        shown = tally.packets - tally.hidden
        if promised and tally.frames < shown - 1 - shown // 10:
            return f"only {tally.frames} of {shown} frames could be decoded"
        seconds = self._promised_seconds()
        if tally.end_s < seconds - max(1.0, 0.05 * seconds):
            return f"{seconds:.1f} s were promised, it ends at {tally.end_s:.1f} s"
        return None

    def _promised_seconds(self) -> float:
        """Duration in the header of a Matroska or WebM file (no frame count there); 0: unknown.

        Other containers' durations may be estimated from the bit rate. The tolerance is large
        because the last frame of a screen recording may last long.
        """
        if not self._container.format.name.startswith("matroska"):
            return 0.0
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", ""))
        if tag:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        if len(self._container.streams) == 1:  # otherwise it may be the audio's duration
            return (self._container.duration or 0) / av.time_base
        return 0.0

    def _broken(self, fault: str) -> BrokenOff:
        count = self._tally.frames
        if not count:
            message = f"{self.description}: holds no whole frame ({fault}); fetch it again"
        else:
            total = f" of {self.length}" if self.length else ""
            message = (
                f"{self.description}: broke off after {count}{total} frames ({fault}); "
                "fetch or record it again"
            )
        return BrokenOff(message, fault)


def _open_container(location: str, address: bool, description: str) -> InputContainer:
    """Open a container. Raises SourceError with FFmpeg's reason."""
    options: dict[str, str] = {}
    if location.lower().startswith("rtsp"):
        options = {"rtsp_transport": "tcp", "fflags": "nobuffer"}
    # An absolute path: FFmpeg parses the start of "a:b.mp4" as a protocol.
    file = location if address else os.path.abspath(location)
    timeout = (STREAM_TIMEOUT_S, STREAM_TIMEOUT_S) if address else None
    try:
        return av.open(file, options=options, timeout=timeout, metadata_errors="replace")
    except av.error.FFmpegError as error:
        advice = (
            "check the address, the network and that the sender is running"
            if address
            else "wanted a complete video file; an mp4 without its index (moov) cannot be read"
        )
        raise SourceError(
            f"{description}: cannot be opened as a video ({_reason(error)}); {advice}"
        ) from error


def _reason(error: av.error.FFmpegError) -> str:
    """FFmpeg's reason without the location, which may contain a password."""
    if isinstance(error, av.error.ExitError):
        return f"no data within {STREAM_TIMEOUT_S:g} s"
    return str(error.strerror or error)


def _array_format(frame: av.VideoFrame) -> str:
    """Pixel format to decode to: 8-bit RGB, or 16 bits for 16-bit grey or RGB (whose data may use
    fewer bits)."""
    name, components = frame.format.name, frame.format.components
    if min(component.bits for component in components) >= 16:
        if name.startswith(("gray", "ya")):
            return "gray16le"
        if frame.format.is_rgb and not name.startswith("bayer"):
            return "rgb48le"
    return "rgb24"


def _upright(image: np.ndarray, frame: av.VideoFrame) -> tuple[np.ndarray, bool]:
    """Apply the frame's display matrix (phones): a contiguous image, and whether width and height
    were swapped.

    The matrix maps (x, y) to (a x + c y, b x + d y), y pointing down; multiples of 90 degrees only.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
        return np.ascontiguousarray(image), False
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data), np.int32, 5))
    turned = abs(b) > abs(a)
    if turned:
        image = image.swapaxes(0, 1)
        a, d = c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]), turned
