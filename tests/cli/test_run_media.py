"""`vosengine run`: times, bit depths, pixel aspects and reconnections of sources."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from exported import small_demo
from flaky_server import Flaky
from PIL import Image

from vosengine.cli.app import main
from vosengine.commands.run import RunOptions, run
from vosengine.errors import InputError
from vosengine.training.synthetic import Clip
from vosengine.video import network, read_labels, write_labels

Weights = Callable[[str], Path]
MS = [0, 33, 66, 99, 132, 165, 365, 565, 765, 965]
SHOWN_S = [ms / 1e3 for ms in MS]
TICK = Fraction(1, 1000)


@pytest.fixture
def work(tmp_path: Path, clip: Clip, tiny_weights: Weights) -> Callable[..., dict[str, Any]]:
    """Runs a source with the clip's first mask into tmp_path / "out"."""
    write_labels(tmp_path / "first.png", clip.masks[0])
    weights = str(tiny_weights("stm"))

    def go(source: Path | str, **changes: Any) -> dict[str, Any]:
        defaults = {"mask": tmp_path / "first.png", "out": tmp_path / "out", "weights": weights}
        return run(RunOptions(str(source), "stm", device="cpu", **{**defaults, **changes}))

    return go


def make_uneven(path: Path, clip: Clip, *, sar: Fraction = Fraction(1), **options: str) -> Path:
    """The clip with even sides, lossless, with frames at the times MS."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "g": "2", "bf": "0"})
        height, width, _ = clip.frames[0].shape
        stream.height, stream.width, stream.pix_fmt = height - 1, width - 1, "yuv444p"
        stream.codec_context.time_base = TICK
        stream.codec_context.sample_aspect_ratio = sar
        for ms, image in zip(MS, clip.frames, strict=True):
            even = np.ascontiguousarray(image[:-1, :-1])
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts, frame.time_base = ms, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_labels(path.with_name("first.png"), clip.masks[0][:-1, :-1])
    return path


def frame_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time or 0.0) for frame in container.decode(video=0)]


def masks_in(out: Path) -> np.ndarray:
    return np.stack([read_labels(path) for path in sorted(out.glob("*.png"))])


@pytest.mark.parametrize(
    ("name", "options"), [("a.mp4", {}), ("a.mkv", {}), ("live.mkv", {"live": "1"})]
)
@pytest.mark.slow
def test_overlay_and_summary_have_the_times_of_the_source(
    tmp_path: Path, clip: Clip, work: Callable[..., dict[str, Any]], name: str, options: Any
) -> None:
    path = make_uneven(tmp_path / name, clip, **options)
    summary = work(path)
    np.testing.assert_allclose(summary["times_s"], SHOWN_S, atol=1e-3)
    np.testing.assert_allclose(frame_times(tmp_path / "out/overlay.mp4"), SHOWN_S, atol=1e-3)
    assert summary["pixel_aspect"] is None and summary["depth"] is None
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary


def test_fps_forces_a_rate(tmp_path: Path, clip: Clip, work: Callable[..., dict[str, Any]]) -> None:
    summary = work(make_uneven(tmp_path / "a.mp4", clip), fps=10)
    np.testing.assert_allclose(summary["times_s"], SHOWN_S, atol=1e-3)
    np.testing.assert_allclose(
        frame_times(tmp_path / "out/overlay.mp4"), np.arange(10) / 10, atol=1e-4
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_time(
    tmp_path: Path, clip: Clip, work: Callable[..., dict[str, Any]], tiny_weights: Weights
) -> None:
    path = make_uneven(tmp_path / "a.mp4", clip)
    left = 4

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    options = RunOptions(
        str(path),
        "stm",
        tmp_path / "out",
        mask=tmp_path / "first.png",
        weights=str(tiny_weights("stm")),
        device="cpu",
    )
    stopped = run(options, should_stop=stop)
    assert not stopped["complete"]
    np.testing.assert_allclose(stopped["times_s"], SHOWN_S[:4], atol=1e-3)
    summary = work(path, resume=True)
    np.testing.assert_allclose(summary["times_s"], SHOWN_S, atol=1e-3)
    np.testing.assert_allclose(frame_times(tmp_path / "out/overlay.mp4"), SHOWN_S, atol=1e-3)


@pytest.mark.slow
def test_pixels_that_are_not_square(
    tmp_path: Path, clip: Clip, work: Callable[..., dict[str, Any]]
) -> None:
    """64 x 98 pixels at 64:45 are shown at 64 x 139, or at 45 x 98."""
    path = make_uneven(tmp_path / "a.mp4", clip, sar=Fraction(64, 45))
    assert work(path)["pixel_aspect"] == "64:45"
    with av.open(str(tmp_path / "out/overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == Fraction(64, 45)
        assert (stream.height, stream.width) == (64, 98)
    for height, width in ((64, 139), (45, 98)):
        wide = np.asarray(Image.fromarray(clip.masks[0]).resize((width, height), 0))
        write_labels(tmp_path / "first.png", wide)
        with pytest.raises(InputError) as caught:
            work(path, out=tmp_path / "other")
        assert f"is {height} x {width}" in str(caught.value)
        assert "the size at which players show" in str(caught.value)
        assert "64 x 98" in str(caught.value) and "64:45" in str(caught.value)
        assert not list((tmp_path / "other").glob("*.png"))


@pytest.mark.slow
def test_twelve_bits_in_sixteen(
    tmp_path: Path, clip: Clip, work: Callable[..., dict[str, Any]]
) -> None:
    """Masks equal those of the same data in 8 bits, and differ if the data are read as 16 bits."""
    seen = {"weights": str(small_demo(tmp_path, "stm")), "precision": "fp32", "limit": 6}
    masks = {}
    for bits in (8, 12):
        folder = tmp_path / f"{bits}"
        folder.mkdir()
        for number, frame in enumerate(clip.frames):
            data = frame[..., ::-1] if bits == 8 else frame[..., ::-1].astype(np.uint16) * 16
            cv2.imwrite(str(folder / f"{number}.png"), data)
        summary = work(folder, out=tmp_path / f"out{bits}", **seen)
        masks[bits] = masks_in(tmp_path / f"out{bits}")
    assert summary["depth"]["bits"] == 12
    assert len(np.unique(masks[8])) > 1
    summary = work(tmp_path / "12", bits=16, out=tmp_path / "out16", **seen)
    assert (summary["depth"]["bits"], summary["depth"]["chosen_by"]) == (16, "--bits")
    masks[16] = masks_in(tmp_path / "out16")
    assert np.mean(masks[8] != masks[12]) < 0.003
    assert np.mean(masks[8] != masks[16]) > 0.006


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png"])
def test_files_of_several_images(
    tmp_path: Path, clip: Clip, work: Callable[..., dict[str, Any]], name: str
) -> None:
    first, *others = [Image.fromarray(frame) for frame in clip.frames]
    lasting = [30] * 5 + [200] * 5
    settings = {} if name == "a.tif" else {"duration": lasting}
    first.save(tmp_path / name, save_all=True, append_images=others, **settings)
    summary = work(tmp_path / name)
    assert summary["complete"] and summary["frame_count"] == 10
    assert summary["frames"] == [f"{i:05d}" for i in range(10)]
    assert len(masks_in(tmp_path / "out")) == 10
    if name == "a.tif":
        assert summary["times_s"] is None
        wanted = np.arange(10) / 24
    else:
        wanted = np.cumsum([0, *lasting[:-1]]) / 1e3
        np.testing.assert_allclose(summary["times_s"], wanted, atol=1e-4)
    np.testing.assert_allclose(frame_times(tmp_path / "out/overlay.mp4"), wanted, atol=1e-4)


@pytest.mark.slow
def test_a_stream_that_drops(
    tmp_path: Path,
    clip: Clip,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_S", 0.02)
    data = make_uneven(tmp_path / "a.mkv", clip).read_bytes()
    server = Flaky(data[: len(data) // 2], None, data, length=len(data))
    arguments = ["run", server.address("a.mkv"), "--model", "stm", "--device", "cpu"]
    arguments += ["--mask", str(tmp_path / "first.png"), "--weights", str(tiny_weights("stm"))]
    arguments += ["--out", str(tmp_path / "out"), "--reconnect", "3", "--no-overlay"]
    monkeypatch.setattr(sys, "argv", ["vosengine", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    server.close()
    assert ended.value.code in (0, None), capsys.readouterr()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["complete"], summary["frame_count"]) == (True, 10)
    (gap,) = summary["gaps"]
    assert gap["tries"] == 2 and gap["frames_lost"] == 0
    assert 0 < gap["after_frame"] < 9 and gap["seconds"] > 0.02
    assert "secret" not in (tmp_path / "out/summary.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "17"], "bits: is 17, wanted 8 to 16"),
        (["--bits", "7"], "bits: is 7, wanted 8 to 16"),
        (["--reconnect", "-1"], "is no network address"),
        (["--reconnect", "2"], "is no network address"),
        (["--bits", "12"], "has 8 bits a value, not 12"),
    ],
)
def test_options_that_cannot_be_meant(
    tmp_path: Path,
    clip: Clip,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "f").mkdir()
    Image.fromarray(clip.frames[0]).save(tmp_path / "f/0.png")
    write_labels(tmp_path / "first.png", clip.masks[0])
    command = ["run", str(tmp_path / "f"), "--model", "stm", "--weights", str(tiny_weights("stm"))]
    command += ["--mask", str(tmp_path / "first.png"), "--out", str(tmp_path / "out"), *arguments]
    monkeypatch.setattr(sys, "argv", ["vosengine", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
