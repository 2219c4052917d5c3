"""Label images, overlays and videos on disk; nothing half-written is left under a final name."""

from __future__ import annotations

import io
import math
import os
import tempfile
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
from PIL import Image, PngImagePlugin

from ..errors import InputError, OutputError
from .palette import DAVIS_PALETTE

StrPath = str | os.PathLike[str]

# Colours near the label's own, but light enough to stand out against its darker blend.
_CONTOUR_COLOURS = (128 + DAVIS_PALETTE.astype(np.uint16) // 2).astype(np.uint8)


def prepare_output_folder(path: StrPath) -> Path:
    """Create the folder with its parents and prove, by a probe file, that it can be written.

    Raises OutputError naming the path and the reason.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"probe")
    except FileExistsError as error:
        raise OutputError(f"{folder}: is a file, wanted a folder; choose another path") from error
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}); wanted a folder to put results in, "
            "choose another path or free this one"
        ) from error
    return folder


def write_labels(path: StrPath, labels: np.ndarray, note: str | None = None) -> None:
    """Write uint8 [H, W] object ids as an indexed PNG (mode P) with the DAVIS palette.

    note: stored as the PNG text "Comment". The file appears whole or not at all.
    Raises InputError on another dtype or shape, OutputError when it cannot be written.
    """
    _check_labels(labels)
    image = Image.fromarray(labels)
    image.putpalette(DAVIS_PALETTE.tobytes())
    info = PngImagePlugin.PngInfo()
    if note is not None:
        info.add_text("Comment", note)
    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=info)
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            scratch.write_bytes(data.getbuffer())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); check the folder and the free space"
        ) from error


def overlay(
    frame: np.ndarray, labels: np.ndarray, *, alpha: float = 0.5, caption: str | None = None
) -> np.ndarray:
    """A new uint8 RGB [H, W, 3]: objects tinted by alpha and outlined, caption at the top left.

    frame: uint8 RGB [H, W, 3]; labels: uint8 [H, W], 0 is left as it is.
    Raises InputError when they do not fit together or alpha is outside 0..1.
    """
    _check_frame(frame)
    _check_labels(labels)
    if frame.shape[:2] != labels.shape:
        raise InputError(f"frame is {frame.shape[:2]}, labels {labels.shape}; wanted equal sizes")
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha is {alpha}, wanted 0 (frame only) to 1 (colour only)")
    frame, labels = np.ascontiguousarray(frame), np.ascontiguousarray(labels)
    out = frame.copy()
    if labels.any():
        triple = cv2.merge([labels, labels, labels])
        tinted = cv2.addWeighted(
            frame, 1.0 - alpha, cv2.LUT(triple, DAVIS_PALETTE[None].copy()), alpha, 0.0
        )
        cv2.copyTo(tinted, labels, out)
        # An object's rim: its pixels with another id within their 3 x 3 neighbourhood.
        cross = np.ones((3, 3), np.uint8)
        rim = cv2.compare(cv2.erode(labels, cross), cv2.dilate(labels, cross), cv2.CMP_NE)
        cv2.copyTo(cv2.LUT(triple, _CONTOUR_COLOURS[None]), cv2.bitwise_and(rim, labels), out)
    if caption:
        _draw_caption(out, caption)
    return out


def _draw_caption(image: np.ndarray, text: str) -> None:
    """White letters with a black edge, readable on any ground, shrunk to the image's width."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    height, width = image.shape[:2]
    (unit_width, unit_height), _ = cv2.getTextSize(text, font, 1.0, 1)
    margin = max(2, height // 60)
    scale = min(max(0.4, height / 600), (width - 2 * margin) / unit_width, height / 2 / unit_height)
    if scale <= 0:
        return
    # The edge is the letters grown, not written again in bold: OpenCV 5 sets bold text wider.
    text_height = math.ceil(unit_height * scale)
    strip = image[: text_height + 3 * margin]
    letters = np.zeros(strip.shape[:2], np.uint8)
    at = (margin, margin + text_height)
    cv2.putText(letters, text, at, font, scale, (255,), max(1, round(scale)), cv2.LINE_AA)
    ground = 255 - cv2.dilate(letters, np.ones((3, 3), np.uint8), iterations=max(1, margin // 4))
    faded = cv2.multiply(strip, cv2.merge([ground] * 3), scale=1 / 255)
    strip[:] = np.maximum(faded, letters[..., None])


class VideoWriter:
    """An H.264 mp4 that any player shows; close() (or leaving `with`) makes it playable.

    path: ends in .mp4; fps: above 0; size: (height, width), else that of the first frame.
    An odd height or width grows by one pixel, the last row or column repeated, for 4:2:0 wants
    even sizes and cropping would lose data. A writer closed without a frame leaves no file.

    Raises OutputError when the file cannot be created or written, InputError on a bad fps.
    """

    def __init__(self, path: StrPath, fps: float, size: tuple[int, int] | None = None) -> None:
        self.path = Path(path)
        if not (fps > 0 and math.isfinite(fps)):
            raise InputError(f"fps is {fps}, wanted a number above 0")
        if self.path.suffix.lower() != ".mp4":
            raise OutputError(f"{self.path}: wanted a name that ends in .mp4")
        self._rate = Fraction(float(fps)).limit_denominator(1001) or Fraction(1, 1001)
        self._size = size
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._closed = self._failed = False
        try:  # FFmpeg opens its file at the first packet; a wrong path should show now
            self.path.open("wb").close()
        except OSError as error:
            raise self._failure(error) from error

    def write(self, frame: np.ndarray) -> None:
        """Append uint8 RGB [H, W, 3]; InputError when its size differs from the video's."""
        _check_frame(frame)
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
        try:
            if self._container is None or self._stream is None:
                self._container, self._stream = self._begin(frame.shape[0], frame.shape[1])
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            self._container.mux(self._stream.encode(picture))
        except av.error.FFmpegError as error:
            self._failed = True
            raise self._failure(error) from error

    def _begin(self, height: int, width: int) -> tuple[OutputContainer, VideoStream]:
        container = av.open(
            str(self.path.absolute()), "w", format="mp4", options={"movflags": "faststart"}
        )
        stream = container.add_stream(
            "libx264", rate=self._rate, options={"crf": "20", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Say which matrix the colours went through; players guess differently by size otherwise.
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1
        context.color_range = 1
        return container, stream

    def close(self) -> None:
        """Write what is pending and the index; safe to call twice. OutputError on failure."""
        if self._closed:
            return
        self._closed = True
        if self._container is None or self._stream is None:
            self.path.unlink(missing_ok=True)
            return
        try:
            try:
                if not self._failed:  # PyAV crashes when it goes on after a failed write
                    self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()
        except av.error.FFmpegError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError | av.error.FFmpegError) -> OutputError:
        return OutputError(
            f"{self.path}: cannot be written ({error.strerror}); check the folder and the free "
            "space, or choose another path"
        )

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_frame(frame: np.ndarray) -> None:
    _check_array("frame", frame, "uint8 RGB [H, W, 3]", frame.ndim == 3 and frame.shape[2] == 3)


def _check_labels(labels: np.ndarray) -> None:
    _check_array("labels", labels, "uint8 [H, W]", labels.ndim == 2)


def _check_array(what: str, array: np.ndarray, wanted: str, fits: bool) -> None:
    if array.dtype != np.uint8 or not fits or not array.size:
        raise InputError(
            f"{what}: {array.dtype} {list(array.shape)}, wanted {wanted} with at least one pixel"
        )
