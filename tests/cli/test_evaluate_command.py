"""`vosengine eval`: models on a small data set, baselines, and the JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import follow, tiny_source
from PIL import Image

import vosengine.detectors
from vosengine.cli.app import main
from vosengine.commands.evaluate import EvaluateOptions, Progress, evaluate
from vosengine.commands.propagation import Features, PropagatedMask
from vosengine.commands.sequences import COPIED, ELLIPSE, PROPAGATED, WARPED
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import InputError, VosError
from vosengine.evaluation import best_ids, centred_ellipse, measure, measure_folders
from vosengine.training.synthetic import Clip, ClipConfig, make_clip
from vosengine.types import Result
from vosengine.video import open_source, read_labels, write_labels

Weights = Callable[[str], Path]
SHAPE = ClipConfig(frames=5, height=64, width=96, objects=(2, 2))


def write_sequence(root: Path, name: str, clip: Clip) -> None:
    images, masks = (root / part / "480p" / name for part in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for index, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        Image.fromarray(frame).save(images / f"{index:05d}.jpg", quality=95)
        write_labels(masks / f"{index:05d}.png", mask)


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {"one": make_clip(SHAPE, 1), "two": make_clip(replace(SHAPE, frames=4), 2)}


@pytest.fixture
def data(tmp_path: Path, clips: dict[str, Clip]) -> Path:
    for name, clip in clips.items():
        write_sequence(tmp_path / "data", name, clip)
    return tmp_path / "data"


def options(model: str, data: Path, weights: Weights, **changes: Any) -> EvaluateOptions:
    plain = {"weights": str(weights(model)), "device": "cpu", "propagation": False}
    return EvaluateOptions(model, data, **{**plain, **changes})


def printed(
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    monkeypatch.setattr(sys, "argv", ["vosengine", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return captured.out if ended.value.code in (0, None) else captured.err


@pytest.mark.slow
def test_a_model_is_scored_as_its_masks_are(
    data: Path, clips: dict[str, Clip], tmp_path: Path, tiny_weights: Weights
) -> None:
    reports: list[Progress] = []
    out = tmp_path / "out"
    evaluated = evaluate(options("stm", data, tiny_weights, out=out), reports.append)
    assert [(p.done, p.total, p.sequence) for p in reports] == [
        *((i, 9, "one") for i in range(1, 6)),
        *((i, 9, "two") for i in range(6, 10)),
    ]
    assert evaluated.evaluation == measure_folders(out, data / "Annotations" / "480p")
    assert len(evaluated.milliseconds) == 7
    masks = {p.stem: read_labels(p) for p in sorted((out / "one").glob("*.png"))}
    frames = [frame.image for frame in open_source(data / "JPEGImages/480p/one")]
    segmenter = Segmenter("stm", weights=tiny_weights("stm"), device="cpu")
    for result in follow(segmenter, frames, clips["one"].masks[0]):
        np.testing.assert_array_equal(masks[f"{result.frame_index:05d}"], result.numpy())


def test_its_baselines_are_the_first_mask_copied_and_warped(
    data: Path, clips: dict[str, Clip], tiny_weights: Weights
) -> None:
    result = evaluate(options("stm", data, tiny_weights))
    assert set(result.baselines) == {COPIED, WARPED}
    for name, clip in clips.items():
        pairs = [(clip.masks[0], mask) for mask in clip.masks]
        assert result.baselines[COPIED].sequences[name] == measure(pairs)
    copied, warped = result.baselines[COPIED].mean, result.baselines[WARPED].mean
    assert copied.jf < warped.jf < 1


@pytest.mark.slow
def test_one_baseline_is_the_mask_propagated_by_a_backbone(
    data: Path, clips: dict[str, Clip], tiny_weights: Weights
) -> None:
    plain = options("stm", data, tiny_weights, sequences=("two",), limit=3, propagation=True)
    result = evaluate(plain)
    assert set(result.baselines) == {COPIED, WARPED, PROPAGATED}
    first, *others = (frame.image for frame in open_source(data / "JPEGImages/480p/two"))
    masks = clips["two"].masks
    propagated = PropagatedMask(Features(torch.device("cpu")), first, masks[0])
    answers = [masks[0], *(propagated.step(frame) for frame in others[:2])]
    wanted = measure(zip(answers, masks[:3], strict=True))
    assert result.baselines[PROPAGATED].sequences["two"] == wanted


@pytest.mark.slow
def test_only_objects_of_the_first_frame_are_followed_and_scored(
    data: Path, clips: dict[str, Clip], tiny_weights: Weights
) -> None:
    first = data / "Annotations/480p/two/00000.png"
    write_labels(first, np.where(clips["two"].masks[0] == 2, 2, 0).astype(np.uint8))
    result = evaluate(options("stm", data, tiny_weights))
    assert set(result.evaluation.sequences["one"].objects) == {1, 2}
    assert set(result.evaluation.sequences["two"].objects) == {2}


@pytest.mark.slow
def test_workers_find_the_same_scores(
    data: Path,
    tmp_path: Path,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bit-identical with equal threads; a failing sequence is named, in any process."""
    alone = evaluate(options("stm", data, tiny_weights, out=tmp_path / "alone"))
    reports: list[Progress] = []
    settings = options("stm", data, tiny_weights, out=tmp_path / "shared", workers=2)
    shared = evaluate(settings, reports.append)
    assert shared.evaluation == alone.evaluation and shared.baselines == alone.baselines
    assert shared.settings == alone.settings
    assert len(shared.milliseconds) == 7
    assert sorted(p.done for p in reports) == [*range(1, 10)]
    for path in (tmp_path / "alone").rglob("*.png"):
        same = tmp_path / "shared" / path.relative_to(tmp_path / "alone")
        assert same.read_bytes() == path.read_bytes()
    listed = [json.loads((tmp_path / n / "masks.json").read_text()) for n in ("alone", "shared")]
    assert listed[0] == listed[1]
    frame = data / "JPEGImages/480p/two/00002.jpg"
    Image.open(frame).resize((40, 40)).save(frame)
    arguments = ["--model", "stm", "--data", data, "--weights", settings.weights, "--device", "cpu"]
    arguments += ["--workers", 2, "--no-propagation"]
    assert "two/00002: the frame is 40 x 40" in printed(arguments, monkeypatch, capsys)
    frame.write_bytes(b"no image")
    with pytest.raises(VosError, match="two"):
        evaluate(options("stm", data, tiny_weights))


class Said:
    """Replaces a Segmenter's network by given labels, frame by frame."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, labels: Callable[[int], np.ndarray]):
        self.prompts: list[np.ndarray | None] = []
        step, flush = Segmenter.step, Segmenter.flush

        def with_labels(result: Result | None) -> Result | None:
            if result is None:
                return None
            return replace(result, labels=torch.from_numpy(labels(result.frame_index)))

        def stepped(segmenter: Segmenter, frame: np.ndarray, mask: np.ndarray | None = None) -> Any:
            self.prompts.append(mask)
            return with_labels(step(segmenter, frame, mask))

        monkeypatch.setattr(Segmenter, "step", stepped)
        monkeypatch.setattr(Segmenter, "flush", lambda s: [with_labels(r) for r in flush(s)])


@pytest.mark.slow
def test_a_single_foreground_is_held_against_all_objects_together(
    data: Path, clips: dict[str, Clip], tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delayed results are scored against their own frame."""
    masks = clips["one"].masks
    stub = Said(monkeypatch, lambda index: (masks[index] > 0).astype(np.uint8))
    result = evaluate(options("imcnet", data, tiny_weights, sequences=("one",)))
    assert (result.evaluation.mean.j, result.evaluation.mean.f) == (1.0, 1.0)
    assert stub.prompts == [None] * 5
    assert set(result.baselines) == {ELLIPSE}
    ellipse = centred_ellipse(64, 96)
    wanted = measure([(ellipse, mask) for mask in masks], binary=True)
    assert result.baselines[ELLIPSE].sequences["one"] == wanted


@pytest.mark.slow
def test_objects_found_by_themselves_are_matched(
    data: Path,
    clips: dict[str, Clip],
    tmp_path: Path,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = clips["one"].masks
    table = np.array([0, 9, 4], np.uint8)

    def labels(index: int) -> np.ndarray:
        mapped = table[masks[index]]
        mapped[:4, :4] = 1  # another one, that nobody annotated
        return mapped

    stub = Said(monkeypatch, labels)
    plain = options("target_aware", data, tiny_weights, sequences=("one",), out=tmp_path / "out")
    result = evaluate(plain)
    assert stub.prompts == [None] * 5
    assert set(result.evaluation.sequences["one"].objects) == {1, 2}
    assert result.evaluation.mean.jf > 0.9
    kept = read_labels(tmp_path / "out" / "one" / "00002.png")
    np.testing.assert_array_equal(kept[4:], masks[2][4:])
    ellipse = centred_ellipse(64, 96)
    ellipse = best_ids([ellipse] * 5, list(masks))[ellipse]
    wanted = measure((ellipse, mask) for mask in masks)
    assert result.baselines[ELLIPSE].sequences["one"] == wanted
    together = evaluate(replace(plain, binary=True))
    assert set(together.evaluation.sequences["one"].objects) == {1}
    assert together.evaluation.mean.j < 1 == result.evaluation.mean.j  # the other one counts here


@pytest.mark.slow
def test_dmn_aoa_asks_for_its_own_proposals(
    data: Path, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vosengine.detectors, "DNetSource", lambda **arguments: tiny_source())
    plain = options("dmn_aoa", data, tiny_weights, sequences=("two",))
    assert set(evaluate(plain).evaluation.sequences["two"].objects) == {1, 2}


@pytest.mark.slow
def test_the_first_frames_alone(data: Path, tiny_weights: Weights) -> None:
    whole = evaluate(options("stm", data, tiny_weights, sequences=("two",)))
    short = evaluate(options("stm", data, tiny_weights, sequences=("two",), limit=3))
    assert (len(whole.milliseconds), len(short.milliseconds)) == (3, 2)
    assert short.settings["limit"] == 3
    with pytest.raises(InputError, match="two: 2 frames, wanted at least 3"):
        evaluate(options("stm", data, tiny_weights, sequences=("two",), limit=2))


def test_bad_data_is_refused(data: Path, tiny_weights: Weights) -> None:
    masks = data / "Annotations/480p/two"
    plain = options("stm", data, tiny_weights, sequences=("two",))
    whole = read_labels(masks / "00002.png")
    write_labels(masks / "00002.png", whole[:60])
    with pytest.raises(InputError, match="two/00002: the frame is 64 x 96, its annotation 60 x 96"):
        evaluate(plain)
    write_labels(masks / "00002.png", whole)
    write_labels(masks / "00000.png", np.zeros_like(whole))
    with pytest.raises(InputError, match=r"00000\.png: shows no object; stm needs"):
        evaluate(plain)
    (masks / "00001.png").unlink()
    with pytest.raises(InputError, match="wanted a mask for every frame"):
        evaluate(plain)


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(
    data: Path,
    tmp_path: Path,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "new" / "figures.json"
    text = printed(
        [
            *("--model", "stm", "--weights", tiny_weights("stm"), "--data", data),
            *("--size", "64x96", "--device", "cpu", "--sequences", "two", "--json", path),
        ],
        monkeypatch,
        capsys,
    )
    report = json.loads(path.read_text())
    assert report["sequences"].keys() == {"two"}
    assert report["sequences"]["two"].keys() >= {"J", "F"}
    assert report["mean"].keys() == {"J", "F", "JF"}
    assert report["baselines"].keys() == {COPIED, WARPED, PROPAGATED}
    assert all(word in text for word in PROPAGATED.split())
    assert report["weights"] == {"name": "stm.tiny-stm", "trained": True, "note": None}
    assert (report["network_size"], report["timed_frames"]) == ([64, 96], 3)
    for figures in (report, *report["baselines"].values()):
        assert 0 <= figures["mean"]["J"] <= 1
        assert f"{figures['mean']['J']:.3f}" in text
        assert f"{figures['mean']['F']:.3f}" in text
    assert f"{report['p50_ms']:.1f} ms a frame" in text


def test_the_command_leaves_the_slow_baseline_out(
    data: Path,
    tmp_path: Path,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "figures.json"
    arguments = ("--model", "stm", "--weights", tiny_weights("stm"), "--data", data)
    few = ("--size", "64x96", "--device", "cpu", "--sequences", "two", "--limit", 3)
    printed([*arguments, *few, "--no-propagation", "--json", path], monkeypatch, capsys)
    assert json.loads(path.read_text())["baselines"].keys() == {COPIED, WARPED}


@pytest.mark.slow
def test_the_command_scores_folders(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    masks = data / "Annotations/480p"
    path = tmp_path / "figures.json"
    arguments = ["--annotations", masks, "--json", path]
    text = printed(["--predictions", masks, *arguments], monkeypatch, capsys)
    assert json.loads(path.read_text())["mean"] == {"J": 1.0, "F": 1.0, "JF": 1.0}
    assert "1.000" in text
    binary = tmp_path / "binary"
    for name in ("one", "two"):
        (binary / name).mkdir(parents=True)
        for file in (masks / name).glob("*.png"):
            write_labels(binary / name / file.name, (read_labels(file) > 0).astype(np.uint8))
    printed(["--predictions", binary, *arguments], monkeypatch, capsys)
    assert json.loads(path.read_text())["mean"]["J"] < 0.9
    printed(["--predictions", binary, *arguments, "--binary"], monkeypatch, capsys)
    assert json.loads(path.read_text())["mean"]["J"] == 1.0


@pytest.mark.slow
def test_the_command_refuses_what_it_cannot_do(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    masks = data / "Annotations/480p"
    either = "wanted --predictions and --annotations, or --model and --data"
    for arguments in (
        [],
        ["--predictions", masks],
        ["--model", "stm"],
        ["--predictions", masks, "--data", data],
        ["--predictions", masks, "--annotations", masks, "--model", "stm", "--data", data],
        ["--predictions", masks, "--annotations", masks, "--model", "stm"],
    ):
        text = printed(list(arguments), monkeypatch, capsys)
        assert either in " ".join(text.replace("│", " ").split()), arguments
    both = ["--predictions", masks, "--annotations", masks]
    (tmp_path / "file").write_text("no folder")
    json_file = tmp_path / "file" / "figures.json"
    assert "OutputError" in printed([*both, "--json", json_file], monkeypatch, capsys)
    assert "no such folder" in printed(
        ["--predictions", masks, "--annotations", tmp_path / "none"], monkeypatch, capsys
    )
    assert "wanted one of stm" in printed(["--model", "x", "--data", data], monkeypatch, capsys)


def test_a_file_of_several_images_has_no_single_mask(
    data: Path, clips: dict[str, Clip], tiny_weights: Weights
) -> None:
    first, *others = [Image.fromarray(frame) for frame in clips["one"].frames]
    folder = data / "JPEGImages/480p/two"
    (folder / "00001.jpg").unlink()
    first.save(folder / "00001.tif", save_all=True, append_images=others)
    with pytest.raises(InputError, match="two: 4 files with 8 images; wanted one image in a file"):
        evaluate(options("stm", data, tiny_weights))
