"""`vosengine run --mask`: void, soft masks, masks by number, late masks, and object ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from exported import Export, draw_clip
from PIL import Image
from test_run_proposals import proposals_of, write_weights
from typer.testing import CliRunner

from vosengine.cli import app as cli
from vosengine.commands.late import LateStream
from vosengine.commands.run import RunOptions, run
from vosengine.detectors.file import write_proposals
from vosengine.errors import InputError, StateError
from vosengine.training.synthetic import Clip
from vosengine.types import Geometry, Result
from vosengine.video import VideoWriter, read_labels, write_labels

Weights = Callable[[str], Path]


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    """Six frames as images."""
    images = tmp_path / "images"
    images.mkdir()
    for index, frame in enumerate(clip.frames[:6]):
        Image.fromarray(frame).save(images / f"shot-{index}.png")
    return images


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    (tmp_path / "masks").mkdir()
    return tmp_path / "masks"


@pytest.fixture
def options(folder: Path, tmp_path: Path, tiny_weights: Weights) -> Callable[..., RunOptions]:
    def describe(model: str = "munet", **changes: Any) -> RunOptions:
        defaults = {"source": str(folder), "out": tmp_path / "o", "device": "cpu", "overlay": False}
        weights = changes.pop("weights", None) or tiny_weights(model)
        return RunOptions(model=model, **{**defaults, "weights": str(weights), **changes})  # type: ignore[arg-type]

    return describe


Options = Callable[..., RunOptions]


def answers(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_labels(path) for path in sorted(out.glob("*.png"))}


def rimmed(labels: np.ndarray) -> np.ndarray:
    square = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(labels, square) != cv2.erode(labels, square)
    return np.where(edge, 255, labels).astype(np.uint8)


def test_void_around_a_prompts_ids_is_no_object(
    options: Options, clip: Clip, tmp_path: Path
) -> None:
    mask = tmp_path / "first.png"
    write_labels(mask, rimmed(clip.masks[0]))
    summary = run(options(mask=mask))
    assert summary["objects"] == [1, 2] and summary["mask"]["with_void"] == 1
    first = answers(tmp_path / "o")["shot-0"]
    np.testing.assert_array_equal(first, np.where(rimmed(clip.masks[0]) == 255, 0, clip.masks[0]))
    assert run(options(mask=mask, mask_void=False, limit=1))["objects"] == [1, 2, 255]
    Image.fromarray((clip.masks[0] > 0) * np.uint8(255)).save(mask)
    assert run(options(mask=mask, limit=1))["objects"] == [1]
    with pytest.raises(InputError, match="shows no object: all is background or void"):
        run(options(mask=mask, mask_void=True))


def typed(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["run", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_line_says_once_that_there_is_void(
    options: Options, clip: Clip, masks: Path
) -> None:
    for index in range(3):
        write_labels(masks / f"shot-{index}.png", rimmed(clip.masks[index]))
    settings = options()
    arguments = [settings.source, "--mask", masks, "--model", "munet", "--limit", 2]
    arguments += ["--weights", settings.weights, "--device", "cpu", "--no-overlay"]
    arguments += ["--out", settings.out]
    for more, count in (([], 1), (["--mask-void"], 1), (["--no-mask-void"], 0)):
        outcome = typed(*arguments, *more)
        assert outcome.exit_code == 0, outcome.output
        assert outcome.output.count("mask: 255 is void") == count
    summary = json.loads((settings.out / "summary.json").read_text())
    assert summary["objects"] == [1, 2, 255]


@pytest.mark.slow
def test_a_soft_mask_wants_a_threshold(options: Options, clip: Clip, tmp_path: Path) -> None:
    soft = cv2.GaussianBlur((clip.masks[0] > 0) * np.uint8(255), (0, 0), 1.5)
    Image.fromarray(soft).save(tmp_path / "soft.png")
    settings = options()
    arguments = [settings.source, "--model", "munet", "--weights", settings.weights, "--limit", 1]
    arguments += ["--device", "cpu", "--no-overlay", "--out", settings.out]
    refused = typed(*arguments, "--mask", tmp_path / "soft.png")
    assert isinstance(refused.exception, InputError)
    assert "soft or JPEG edges" in str(refused.exception) and not list(settings.out.glob("*.png"))
    assert typed(*arguments, "--mask", tmp_path / "soft.png", "--threshold", 128).exit_code == 0
    np.testing.assert_array_equal(answers(settings.out)["shot-0"], (soft >= 128).astype(np.uint8))
    Image.fromarray(soft // 2).save(tmp_path / "dark.png")
    with pytest.raises(InputError, match="nothing as bright as the threshold, 128; lower it"):
        run(options(mask=tmp_path / "dark.png", threshold=128))


# Which frame


def test_masks_are_matched_by_number_where_names_differ(
    options: Options, clip: Clip, masks: Path, tmp_path: Path
) -> None:
    for index in (0, 3):
        write_labels(masks / f"frame_{index:06d}.png", clip.masks[index])
    with VideoWriter(tmp_path / "clip.mp4", 25) as writer:
        for frame in clip.frames[:5]:
            writer.write(frame[:64, :98])
    summary = run(options(mask=masks))
    assert summary["mask"]["matched_by"] == "number"
    np.testing.assert_array_equal(answers(tmp_path / "o")["shot-3"], clip.masks[3])
    for index in (0, 3):
        write_labels(masks / f"frame_{index:06d}.png", clip.masks[index][:64, :98])
    run(options(source=str(tmp_path / "clip.mp4"), mask=masks, out=tmp_path / "v"))
    np.testing.assert_array_equal(answers(tmp_path / "v")["00003"], clip.masks[3][:64, :98])


def test_masks_of_no_frame_are_refused_by_name(
    options: Options, clip: Clip, masks: Path, tmp_path: Path
) -> None:
    write_labels(masks / "shot-0.png", clip.masks[0])
    run(options(mask=masks, limit=1))
    before = {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    write_labels(masks / "shot-6.png", clip.masks[0])
    with pytest.raises(InputError, match=r"1 of 2 match no frame: shot-6; wanted the names of the"):
        run(options(mask=masks))
    assert {path: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before


# Late and gone


@pytest.mark.parametrize("model", ["munet", "dmn_aoa"])
def test_before_a_late_first_mask_there_is_nothing(
    model: str, options: Options, folder: Path, clip: Clip, masks: Path, tmp_path: Path
) -> None:
    """From its first mask on, a run equals one that begins there, also with proposals."""
    write_labels(masks / "shot-2.png", clip.masks[2])
    write_labels(masks / "shot-0.png", np.zeros_like(clip.masks[0]))  # says nothing
    proposals = {}
    if model == "dmn_aoa":
        write_proposals(tmp_path / "p.json", map(proposals_of, clip.masks[:6]))
        proposals = {"proposals": f"file:{tmp_path / 'p.json'}"}
    summary = run(options(model, mask=masks, **proposals))
    assert summary["frame_count"] == 6 and summary["objects"] == [1, 2]
    assert (summary["mask"]["first_frame"], summary["mask"]["without_objects"]) == (2, 1)
    results = answers(tmp_path / "o")
    assert not results["shot-0"].any() and not results["shot-1"].any()
    for index in (0, 1):
        (folder / f"shot-{index}.png").unlink()
    if model == "dmn_aoa":
        write_proposals(tmp_path / "p.json", map(proposals_of, clip.masks[2:6]))
    (masks / "shot-0.png").unlink()
    run(options(model, mask=masks, out=tmp_path / "there", **proposals))
    wanted = answers(tmp_path / "there")
    assert {name: results[name].tolist() for name in wanted} == {
        name: labels.tolist() for name, labels in wanted.items()
    }


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.slow
def test_a_late_run_is_resumed(
    stop: int, options: Options, clip: Clip, masks: Path, tmp_path: Path
) -> None:
    write_labels(masks / "shot-2.png", clip.masks[2])
    run(options(mask=masks, out=tmp_path / "whole"))
    count = iter(range(99))
    run(options(mask=masks), should_stop=lambda: next(count) >= stop)
    if stop > 2:
        write_labels(masks / "shot-1.png", clip.masks[1])
        with pytest.raises(StateError, match="had its first mask at frame 2, here it is 1"):
            run(options(mask=masks, resume=True))
        (masks / "shot-1.png").unlink()
        run(options(mask=masks, resume=True))
        resumed, wanted = answers(tmp_path / "o"), answers(tmp_path / "whole")
        assert list(resumed) == list(wanted)
        for name, labels in wanted.items():
            np.testing.assert_array_equal(resumed[name], labels)


class Counting:
    """A segmenter with latency 2 whose labels are its frame numbers."""

    latency = 2
    geometry: Geometry | None = None

    def __init__(self) -> None:
        self.seen = 0

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Result[Any] | None:
        self.seen += 1
        return self._answer(self.seen - 3) if self.seen > 2 else None

    def flush(self) -> list[Result[Any]]:
        return [self._answer(i) for i in range(max(0, self.seen - 2), self.seen)]

    def _answer(self, index: int) -> Result[Any]:
        return Result(np.full((32, 32), 100 + index, np.uint8), (1,), index, lambda: np.ones(1))


@pytest.mark.parametrize("start", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("frames", [1, 3, 6])
def test_a_late_stream_keeps_its_latency(start: int, frames: int) -> None:
    stream = LateStream(Counting(), start)
    frame = np.zeros((32, 32, 3), np.uint8)
    outputs = [stream.step(frame) for _ in range(frames)]
    assert [result is None for result in outputs] == [i < 2 for i in range(frames)]
    results = [result for result in outputs if result is not None] + stream.flush()
    assert [result.frame_index for result in results] == list(range(frames))
    values = [int(result.labels.max()) for result in results]
    assert values == [0 if i < start else 100 + i - start for i in range(frames)]
    assert results[0].probabilities.shape[-2:] == (32, 32) or start == 0
    with pytest.raises(InputError, match="the stream is"):
        stream.step(np.zeros((40, 32, 3), np.uint8))


def test_a_late_first_mask_by_an_export(export: Export, tmp_path: Path, masks: Path) -> None:
    clip = draw_clip((96, 144), 2, frames=5)
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for frame in clip.frames:
            writer.write(frame)
    write_labels(masks / "frame_2.png", rimmed(clip.masks[2]))
    arguments = [tmp_path / "clip.mp4", "--mask", masks, "--no-overlay", "--out", tmp_path / "o"]
    outcome = typed("--engine", "onnx", export("munet"), *arguments)
    assert outcome.exit_code == 0, outcome.output
    results = answers(tmp_path / "o")
    assert [bool(labels.any()) for labels in results.values()] == [False, False, True, True, True]
    assert set(np.unique(results["00002"])) == {0, 1, 2}


# Whose ids


@pytest.mark.slow
def test_no_discovered_object_has_an_id_that_is_on_disk(
    options: Options, clip: Clip, masks: Path, tmp_path: Path
) -> None:
    """Frame 5 prompts ids 1 and 2; objects discovered before get other ids."""
    write_proposals(tmp_path / "p.json", map(proposals_of, clip.masks[:6]))
    write_labels(masks / "shot-5.png", np.where(clip.masks[5] == 1, 2, 0).astype(np.uint8))
    write_labels(masks / "shot-4.png", np.where(clip.masks[4] == 2, 1, 0).astype(np.uint8))
    weights = write_weights(tmp_path / "quick.safetensors")
    proposals = f"file:{tmp_path / 'p.json'}"
    run(options("target_aware", weights=weights, mask=masks, proposals=proposals))
    for name, labels in answers(tmp_path / "o").items():
        ids = {*np.unique(labels).tolist()} - {0}
        assert not ids & {1, 2} or name in ("shot-4", "shot-5")
        assert ids or name != "shot-0"


def test_more_ids_on_disk_than_there_is_room_for_are_refused_at_once(
    options: Options, clip: Clip, masks: Path, tmp_path: Path
) -> None:
    for index in range(3):
        write_labels(masks / f"shot-{index}.png", (clip.masks[index] > 0) * np.uint8(index + 1))
    with pytest.raises(InputError, match=r"3 objects \[1, 2, 3\] are more than max_objects = 2"):
        run(options(mask=masks, max_objects=2))
    assert not (tmp_path / "o" / "shot-0.png").exists()
    run(options(mask=masks, max_objects=2, limit=2))  # what is not reached needs none


def test_a_late_mask_of_another_size_is_refused_at_once(
    options: Options, clip: Clip, masks: Path, tmp_path: Path
) -> None:
    write_labels(masks / "shot-0.png", clip.masks[0])
    run(options(mask=masks, limit=1))
    before = {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    write_labels(masks / "shot-4.png", clip.masks[0][:60])
    with pytest.raises(InputError, match=r"shot-4.png is 60 x 99, the frames are 65 x 99"):
        run(options(mask=masks))
    assert {path: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before
