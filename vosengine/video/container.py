"""Frames from a video file or a network address, with an eye on what may be missing."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.stream import VideoStream

from ..errors import SourceError
from .frame_source import DEFAULT_FPS, FrameSource, SourceFrame

STREAM_TIMEOUT_S = 10.0
"""How long a network address may take to open, and to deliver each further packet."""
MAX_BAD_PACKETS = 100
"""Undecodable packets in a row after which a live stream counts as broken."""


@dataclass(slots=True)
class _Tally:
    """What has come out of the container so far, to be held against what it promised."""

    packets: int = 0
    hidden: int = 0
    frames: int = 0
    end_s: float = 0.0


class Video(FrameSource):
    """A video file or a network address, read by PyAV."""

    def __init__(self, location: str, *, address: bool) -> None:
        self.description = re.sub(r"//[^/@]*@", "//***@", location)
        self._read = False
        self._tally = _Tally()
        self._lock = threading.Lock()
        self._container = _open_container(location, address, self.description)
        stream = self._container.streams.best("video")
        # A song's cover picture is a video stream to FFmpeg, but not to anybody else.
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            self._container.close()
            raise SourceError(f"{self.description}: holds no video stream; wanted a video")
        self._stream = stream
        self._frames = self._decode()
        # A file behind a web address has a duration and waits for its reader: it is not live.
        waits = location.lower().startswith("http") and self._container.duration is not None
        self.live = address and not waits
        # Frame threads hold frames back: good for the throughput of a file, bad for live delay.
        stream.thread_type = "SLICE" if self.live else "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else DEFAULT_FPS
        self.length = None if self.live else stream.frames or None

    def __iter__(self) -> Iterator[SourceFrame]:
        if self._read or self._closed:
            raise SourceError(f"{self.description} was already read or closed; open it again")
        self._read = True
        index, fault = 0, None
        try:
            while True:
                # PyAV crashes when a container in use is closed, so the two exclude each other.
                with self._lock:
                    frame = next(self._frames, None)
                    if frame is None:
                        break
                    image = _upright(frame.to_ndarray(format="rgb24"), frame)
                self._tally.frames = index + 1
                yield SourceFrame(f"{index:05d}", index, image)
                index += 1
            if not self._closed:
                fault = self._shortfall()
        except av.error.FFmpegError as error:
            fault = _reason(error)
        finally:
            self.close()
        if fault:
            raise self._broken(fault)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._frames.close()
                self._container.close()

    def _decode(self) -> Generator[av.VideoFrame]:
        """All frames up to the end, or up to the first fault (FFmpegError or SourceError)."""
        tally, bad_packets = self._tally, 0
        base = self._stream.time_base or Fraction(0)
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt and not self.live:
                # The decoder still holds whole frames; those shown after the first lost one
                # would be numbered wrongly. What is lost is shown at this packet's dts or later.
                held = self._stream.decode(None)
                yield from (f for f in held if f.pts is not None and f.pts < (packet.dts or 0))
                raise self._broken("the data is cut short or damaged")
            if packet.size or packet.dts is not None:
                tally.packets += 1
                tally.hidden += packet.is_discard
                end = (packet.pts or 0) + (packet.duration or 0)
                tally.end_s = max(tally.end_s, float(end * base))
                if not packet.size:  # a skipped picture; to the decoder it would mean the end
                    continue
            try:
                frames = self._stream.decode(packet)
                bad_packets = 0
            except av.error.InvalidDataError:
                # One joins a live stream mid-way and loses packets: go on at the next whole one.
                bad_packets += 1
                if not self.live or bad_packets >= MAX_BAD_PACKETS:
                    raise
                continue
            for frame in frames:
                if frame.is_corrupt and not self.live:
                    raise self._broken("the data is cut short or damaged")
                yield frame

    def _shortfall(self) -> str | None:
        """What the container promised and did not deliver; None when all came, or it is live.

        Decoder threads swallow errors in the last packets, and most demuxers take a missing tail
        for the end, so a cut file may end without any error.
        """
        tally, format_name = self._tally, self._container.format.name
        if not tally.frames:
            return "nothing to decode"
        if self.live:
            return None
        promised = self._stream.frames
        if "mp4" in format_name.split(","):
            # Trailing edits shorten the index that FFmpeg goes by, not the frame count; what
            # the index lists has to come.
            promised, slack = min(promised, len(self._stream.index_entries)), 0
        else:
            slack = 1 + promised // 50  # AVI headers also count dropped, empty frames
        if tally.packets < promised - slack:
            return f"{promised} frames were promised, data for {tally.packets} is there"
        # Benign: packets hidden by an edit list, invisible reference frames (VP8: one in 15 or
        # so), and frames whose references lie before a cut.
        shown = tally.packets - tally.hidden
        if promised and tally.frames < shown - 1 - shown // 10:
            return f"only {tally.frames} of {shown} frames could be decoded"
        seconds = self._promised_seconds()
        if tally.end_s < seconds - max(1.0, 0.05 * seconds):
            return f"{seconds:.1f} s were promised, it ends at {tally.end_s:.1f} s"
        return None

    def _promised_seconds(self) -> float:
        """Length by a Matroska or WebM header, which has no frame count; else 0 (unknown).

        Other containers' durations may be guesses from the bit rate. The slack is wide because
        the last frame of a screen recording may last long.
        """
        if not self._container.format.name.startswith("matroska"):
            return 0.0
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", ""))
        if tag:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        if len(self._container.streams) == 1:  # else it may be the sound that is longer
            return (self._container.duration or 0) / av.time_base
        return 0.0

    def _broken(self, fault: str) -> SourceError:
        count = self._tally.frames
        if not count:
            return SourceError(
                f"{self.description}: holds no whole frame ({fault}); fetch it again"
            )
        total = f" of {self.length}" if self.length else ""
        return SourceError(
            f"{self.description}: broke off after {count}{total} frames ({fault}); "
            "fetch or record it again"
        )


def _open_container(location: str, address: bool, description: str) -> InputContainer:
    """The opened container; SourceError with FFmpeg's reason when it is no video."""
    options: dict[str, str] = {}
    if location.lower().startswith("rtsp"):
        options = {"rtsp_transport": "tcp", "fflags": "nobuffer"}
    # An absolute path: FFmpeg would take the start of "a:b.mp4" for a protocol.
    file = location if address else os.path.abspath(location)
    timeout = (STREAM_TIMEOUT_S, STREAM_TIMEOUT_S) if address else None
    try:
        return av.open(file, options=options, timeout=timeout, metadata_errors="replace")
    except av.error.FFmpegError as error:
        advice = (
            "check the address, the network and that the sender is on"
            if address
            else "wanted a whole video file; an mp4 without its index (moov) cannot be read"
        )
        raise SourceError(
            f"{description}: cannot be opened as a video ({_reason(error)}); {advice}"
        ) from error


def _reason(error: av.error.FFmpegError) -> str:
    """FFmpeg's reason without the location, which may hold a password."""
    if isinstance(error, av.error.ExitError):
        return f"no data within {STREAM_TIMEOUT_S:g} s"
    return str(error.strerror or error)


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The image turned and mirrored as the frame's display matrix says (phones); contiguous.

    The matrix maps (x, y) to (a x + c y, b x + d y), y pointing down; quarter turns only.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
        return np.ascontiguousarray(image)
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data), np.int32, 5))
    if abs(b) > abs(a):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
