"""Presentation times: of sources, and of overlays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import HEIGHT, WIDTH, make_images, make_video, noise, read_all

from vosengine.errors import InputError
from vosengine.video import VideoWriter, open_source
from vosengine.video.clock import Clock

MS = [0, 33, 66, 99, 132, 165, 365, 565, 765, 965]
"""Five frames 33 ms apart, and five 200 ms."""
SHOWN_S = [ms / 1e3 for ms in MS]


def make_uneven(
    path: Path,
    codec: str = "libx264",
    *,
    tick: Fraction = Fraction(1, 1000),
    start_ms: int = 0,
    sar: Fraction = Fraction(1),
    rotation: int = 0,
    sound: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """Ten frames, shown at MS after start_ms."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = tick
        stream.codec_context.sample_aspect_ratio = sar
        if rotation:
            stream.set_display_rotation(rotation)
        if sound:
            track = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, 0
            container.mux(track.encode(silence))
            container.mux(track.encode(None))
        for ms, image in zip(MS, noise(len(MS)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(Fraction(ms + start_ms, 1000) / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frame_times(path: Path) -> list[float]:
    """Times in seconds, read with FFmpeg only."""
    with av.open(str(path)) as container:
        return [float(frame.time or 0.0) for frame in container.decode(video=0)]


def copy(path: Path, out: Path) -> Path:
    """Write frames with their times, as `run` does."""
    with open_source(path) as source, VideoWriter(out, source.fps, tick=source.tick) as writer:
        for frame in source:
            writer.write(frame.image, frame.time_s, frame.sar)
    return out


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx", {"live": "1"}),  # as a browser records: no duration
        ("a.ts", "libx264", {}),
        ("a.mov", "mpeg4", {}),
    ],
)
def test_times_go_into_the_overlay(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    tick = Fraction(1, 90000) if name == "a.ts" else Fraction(1, 1000)
    path = make_uneven(tmp_path / name, codec, tick=tick, options=options)
    frames = read_all(path)
    with open_source(path) as source:
        tick = source.tick
    np.testing.assert_allclose([f.time_s for f in frames], SHOWN_S, atol=float(tick))
    out = frame_times(copy(path, tmp_path / "overlay.mp4"))
    np.testing.assert_allclose(out, SHOWN_S, atol=float(tick))


def test_a_video_that_starts_later_than_its_sound(tmp_path: Path) -> None:
    path = make_uneven(tmp_path / "a.mp4", start_ms=500, sound=True)
    wanted = np.array(SHOWN_S) + 0.5
    np.testing.assert_allclose([f.time_s for f in read_all(path)], wanted, atol=1e-3)
    np.testing.assert_allclose(frame_times(copy(path, tmp_path / "o.mp4")), wanted, atol=1e-3)


def test_a_recording_that_was_joined_in_the_middle_starts_at_0(tmp_path: Path) -> None:
    path = make_uneven(tmp_path / "a.mkv", start_ms=3_600_000)
    np.testing.assert_allclose([f.time_s for f in read_all(path)], SHOWN_S, atol=1e-3)


def test_a_constant_rate_stays_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 30000 / 1001) as writer:
        for image in noise(7):
            writer.write(image)
    copied = copy(path, tmp_path / "o.mp4")
    with av.open(str(copied)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        times = [frame.pts * stream.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1001 * i, 30000) for i in range(7)]


def test_sources_without_times(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "f", "1.png", "2.png")
    bare = make_video(tmp_path / "a.h264", noise(3))
    for path, count in ((folder, 2), (bare, 3)):
        assert [f.time_s for f in read_all(path)] == [None] * count
        copied = frame_times(copy(path, tmp_path / "o.mp4"))
        rate = 24 if path == folder else 25
        np.testing.assert_allclose(copied, np.arange(count) / rate, atol=1e-4)


def test_clock_only_goes_forward() -> None:
    clock = Clock(Fraction(1, 1000), 25.0)
    stamps = [-20, 20, 20, 21, 90, None, 200, 100_000, 7, 50]
    times = [clock.time_of(stamp) for stamp in stamps]
    ticks = [0, 40, 41, 42, 110, 150, 220, 100_020, 100_060, 100_103]
    np.testing.assert_allclose(times, np.array(ticks) / 1e3)  # type: ignore[arg-type]
    assert clock.mended == 4
    untimed = Clock(Fraction(1, 1000), 25.0)
    assert [untimed.time_of(stamp) for stamp in (None, 5, None)] == [None] * 3


@pytest.mark.parametrize(
    ("tick", "longest_s"),
    [
        (Fraction(1, 1_000_000), 2147),
        (Fraction(1, 90_000), 23860),
        (Fraction(1, 1000), 134217),
        (Fraction(1001, 30000), 71582),
    ],
)
def test_frames_that_last_long(tmp_path: Path, tick: Fraction, longest_s: int) -> None:
    times = [0.0, 0.04, longest_s - 0.5]
    with VideoWriter(tmp_path / "a.mp4", 25, tick=tick) as writer:
        for image, time_s in zip(noise(3), times, strict=True):
            writer.write(image, time_s)
        with pytest.raises(InputError, match=rf"more than the {longest_s} s after .*--fps"):
            writer.write(image, 2.1 * longest_s)
    np.testing.assert_allclose(frame_times(tmp_path / "a.mp4"), times, atol=float(tick) / 2 + 1e-9)


def test_times_that_do_not_grow_are_refused(tmp_path: Path) -> None:
    image = noise(1)[0]
    with VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(image, 0.5)
        for time_s in (0.5, 0.4, 0.500001):
            with pytest.raises(InputError, match=rf"time_s is {time_s}, wanted later than 0\.5"):
                writer.write(image, time_s)
        with pytest.raises(InputError, match="with and without a time"):
            writer.write(image)
        writer.write(image, 0.6)
    np.testing.assert_allclose(frame_times(tmp_path / "a.mp4"), [0.5, 0.6], atol=1e-4)


@pytest.mark.parametrize(("name", "rotation"), [("a.mp4", 0), ("a.mkv", 0), ("a.mp4", 90)])
def test_pixel_aspect_goes_into_the_overlay(tmp_path: Path, name: str, rotation: int) -> None:
    path = make_uneven(tmp_path / name, sar=Fraction(64, 45), rotation=rotation)
    wanted = Fraction(45, 64) if rotation else Fraction(64, 45)
    assert {f.sar for f in read_all(path)} == {wanted}
    with av.open(str(copy(path, tmp_path / "o.mp4"))) as container:
        assert container.streams.video[0].sample_aspect_ratio == wanted
