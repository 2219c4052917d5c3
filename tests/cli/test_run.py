"""`vosengine run` on real files: results, stopping, and error messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import object_ids
from PIL import Image

from vosengine.commands.run import Progress, RunOptions, run
from vosengine.errors import (
    InputError,
    OutputError,
    SourceError,
    StateError,
    WeightsError,
)
from vosengine.training.synthetic import Clip
from vosengine.video import VideoWriter, read_labels, write_labels

Weights = Callable[[str], Path]


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    """The clip as a folder of images whose names are not numbers, and its first mask."""
    images = tmp_path / "images"
    images.mkdir()
    for index, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(images / f"shot-{index}.png")
    write_labels(tmp_path / "first.png", clip.masks[0])
    return images


@pytest.fixture
def video(clip: Clip, tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 25) as writer:
        for frame in clip.frames:
            writer.write(frame[:64, :98])
    write_labels(tmp_path / "video-first.png", clip.masks[0][:64, :98])
    return path


def options(source: Path | str, tmp_path: Path, weights: Path, **changes: object) -> RunOptions:
    defaults = {
        "model": "stm",
        "mask": tmp_path / "first.png",
        "device": "cpu",
        "out": tmp_path / "o",
    }
    return RunOptions(source=str(source), weights=str(weights), **{**defaults, **changes})  # type: ignore[arg-type]


def masks_in(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_labels(path) for path in sorted(out.glob("*.png"))}


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.slow
def test_a_folder_gives_masks_overlay_and_summary(
    folder: Path, clip: Clip, tmp_path: Path, tiny_weights: Weights
) -> None:
    reports: list[Progress] = []
    summary = run(options(folder, tmp_path, tiny_weights("stm")), report=reports.append)
    out = tmp_path / "o"
    masks = masks_in(out)
    assert list(masks) == [f"shot-{i}" for i in range(10)]
    np.testing.assert_array_equal(masks["shot-0"], clip.masks[0])
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("P", (99, 65))
            assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert all(object_ids(mask) <= {1, 2} for mask in masks.values())
    assert len(frames_of(out / "overlay.mp4")) == 10
    assert [report.done for report in reports] == list(range(1, 11))
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["complete"] is True
    assert summary["weights"]["trained"] is True
    assert len(summary["per_frame_ms"]) == summary["frame_count"] == 10
    assert 0 < summary["p50_ms"] <= summary["p95_ms"] <= summary["p99_ms"]
    assert not (out / "state.safetensors").exists()


@pytest.mark.slow
def test_a_video_and_a_glob_are_sources_too(
    video: Path, folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    weights = tiny_weights("munet")
    first = tmp_path / "video-first.png"
    run(options(video, tmp_path, weights, model="munet", mask=first, out=tmp_path / "v"))
    assert list(masks_in(tmp_path / "v")) == [f"{i:05d}" for i in range(10)]
    run(options(folder / "shot-[0-4].png", tmp_path, weights, model="munet", out=tmp_path / "g"))
    assert len(masks_in(tmp_path / "g")) == 5


@pytest.mark.slow
def test_random_weights_say_so_in_every_output(folder: Path, tmp_path: Path) -> None:
    plain = RunOptions(
        source=str(folder),
        model="stm",
        out=tmp_path / "o",
        mask=tmp_path / "first.png",
        weights="random",
        device="cpu",
        limit=2,
    )
    summary = run(plain)
    assert summary["weights"]["name"] == "stm.random"
    assert "RANDOM" in summary["weights"]["note"]
    with Image.open(tmp_path / "o" / "shot-1.png") as image:
        assert "RANDOM" in image.info["Comment"]
    # The caption is the only thing that can be white and black side by side in the corner.
    corner = frames_of(tmp_path / "o" / "overlay.mp4")[1][:20, :60].astype(int).sum(axis=2)
    assert corner.max() > 600
    assert corner.min() < 120


def test_a_folder_of_masks_prompts_frames_by_name(
    folder: Path, clip: Clip, tmp_path: Path, tiny_weights: Weights
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    write_labels(prompts / "shot-0.png", np.where(clip.masks[0] == 1, 1, 0).astype(np.uint8))
    late = np.where(clip.masks[6] == 2, 40, 0).astype(np.uint8)
    write_labels(prompts / "shot-6.png", late)
    summary = run(options(folder, tmp_path, tiny_weights("stm"), mask=prompts))
    masks = masks_in(tmp_path / "o")
    assert object_ids(masks["shot-5"]) <= {1}
    np.testing.assert_array_equal(masks["shot-6"] == 40, late == 40)
    assert summary["objects"] == [1, 40]


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_as_never_stopped(
    folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    weights = tiny_weights("munet")
    whole = run(options(folder, tmp_path, weights, model="munet", out=tmp_path / "whole"))
    seen: list[int] = []
    parts = options(folder, tmp_path, weights, model="munet", out=tmp_path / "parts")
    halted = run(
        parts, report=lambda p: seen.append(p.done), should_stop=lambda: len(seen) in (4, 7)
    )
    assert (halted["complete"], halted["frame_count"]) == (False, 4)
    assert len(frames_of(tmp_path / "parts" / "overlay.mp4")) == 4
    resumed = RunOptions(**{**vars(parts), "resume": True})
    assert (
        run(resumed, report=lambda p: seen.append(p.done), should_stop=lambda: len(seen) == 7)[
            "frame_count"
        ]
        == 7
    )
    final = run(resumed)
    assert (final["complete"], final["frames"]) == (True, whole["frames"])
    assert len(final["per_frame_ms"]) == 10
    assert len(frames_of(tmp_path / "parts" / "overlay.mp4")) == 10
    for name, mask in masks_in(tmp_path / "whole").items():
        np.testing.assert_array_equal(read_labels(tmp_path / "parts" / f"{name}.png"), mask)
    with pytest.raises(OutputError, match="the run there is complete"):
        run(resumed)


def test_resume_wants_a_stopped_run_under_the_same_settings(
    folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    weights = tiny_weights("stm")
    with pytest.raises(OutputError, match="no run to resume"):
        run(options(folder, tmp_path, weights, resume=True))
    stops = iter([False, False, True])
    run(options(folder, tmp_path, weights), should_stop=lambda: next(stops))
    with pytest.raises(StateError, match="size: saved None, here 48"):
        run(options(folder, tmp_path, weights, resume=True, size=48))


@pytest.mark.slow
def test_a_second_run_replaces_the_first(
    folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    weights = tiny_weights("stm")
    run(options(folder, tmp_path, weights))
    (tmp_path / "o" / "mine.png").write_bytes(b"not the run's")
    run(options(folder / "shot-[01].png", tmp_path, weights))
    assert sorted(p.name for p in (tmp_path / "o").glob("*.png")) == [
        "mine.png",
        "shot-0.png",
        "shot-1.png",
    ]


@pytest.mark.slow
def test_frames_before_a_fault_are_kept_and_the_run_can_go_on(
    folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    """An unreadable image: masks before it are written; once repaired, the run resumes."""
    weights = tiny_weights("stm")
    good = (folder / "shot-5.png").read_bytes()
    (folder / "shot-5.png").write_bytes(good[:40])
    with pytest.raises(SourceError, match=r"shot-5\.png"):
        run(options(folder, tmp_path, weights))
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert (summary["complete"], summary["frame_count"]) == (False, 5)
    assert "shot-5" in summary["fault"]
    assert len(masks_in(tmp_path / "o")) == len(frames_of(tmp_path / "o" / "overlay.mp4")) == 5
    (folder / "shot-5.png").write_bytes(good)
    assert run(options(folder, tmp_path, weights, resume=True))["frame_count"] == 10


def test_a_size_that_changes_in_mid_stream(
    folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    Image.new("RGB", (50, 50)).save(folder / "shot-3.png")
    with pytest.raises(InputError, match="the stream is 65 x 99, given 50 x 50"):
        run(options(folder, tmp_path, tiny_weights("stm")))
    assert len(masks_in(tmp_path / "o")) == 3


@pytest.mark.slow
def test_bad_input_is_refused_before_anything_is_removed(
    folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    weights = tiny_weights("stm")
    run(options(folder, tmp_path, weights))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    rgb = tmp_path / "rgb.png"
    Image.new("RGB", (99, 65), (128, 0, 0)).save(rgb)
    file = tmp_path / "file"
    file.write_text("no folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[RunOptions, type[Exception]]] = [
        (options(tmp_path / "none.mp4", tmp_path, weights), SourceError),
        (options(empty, tmp_path, weights), SourceError),
        (options(file, tmp_path, weights), SourceError),
        (options(folder, tmp_path, weights, mask=tmp_path / "none.png"), InputError),
        (options(folder, tmp_path, weights, mask=rgb), InputError),
        (options(folder, tmp_path, weights, mask=empty), InputError),
        (options(folder, tmp_path, weights, mask=None), InputError),
        (options(folder, tmp_path, broken), WeightsError),
        (options(folder, tmp_path, weights, model="munet"), WeightsError),
        (options(folder, tmp_path, weights, out=file / "below"), OutputError),
    ]
    for wrong, error in cases:
        with pytest.raises(error):
            run(wrong)
    assert len(masks_in(tmp_path / "o")) == 10


@pytest.mark.slow
def test_ctrl_c_finishes_the_files(folder: Path, tmp_path: Path, tiny_weights: Weights) -> None:
    """A signal to a separate process: complete files, exit code 130, and the run can be resumed."""
    out = tmp_path / "o"
    code = (
        "import sys, time; import vosengine.engine.segmenter as s; step = s.Segmenter.step\n"
        "def slow(*a, **k): time.sleep(0.2); return step(*a, **k)\n"
        "s.Segmenter.step = slow\n"
        "from vosengine.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code, "run", str(folder), "--model", "stm", "--out", str(out)]
    command += ["--mask", str(tmp_path / "first.png"), "--weights", str(tiny_weights("stm"))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("shot-*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert 3 <= summary["frame_count"] < 10
    assert len(frames_of(out / "overlay.mp4")) == len(masks_in(out)) == summary["frame_count"]
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert len(masks_in(out)) == 10
