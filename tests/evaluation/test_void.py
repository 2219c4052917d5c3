"""255 as void in evaluation: void pixels are not scored, in J and in F."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vosengine.cli import app as cli
from vosengine.commands.sequences import SequenceRun
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import ConfigError
from vosengine.evaluation import Score, find_annotated, measure_folders, outside_void
from vosengine.video import Mask, MaskRule, write_labels

SIZE = (60, 80)
PERFECT = Score(1.0, 1.0)


def discs(frame: int) -> np.ndarray:
    """Two objects that move, uint8 [60, 80]."""
    mask = cv2.circle(np.zeros(SIZE, np.uint8), (20 + frame, 30), 12, 1, -1)
    return cv2.circle(mask, (58, 30 - frame), 10, 2, -1)


def rim(labels: np.ndarray, width: int = 5) -> np.ndarray:
    square = np.ones((width, width), np.uint8)
    return np.asarray(cv2.dilate(labels, square) != cv2.erode(labels, square))


def annotated(frame: int) -> np.ndarray:
    return np.where(rim(discs(frame)), 255, discs(frame)).astype(np.uint8)


def write(folder: Path, masks: list[np.ndarray], name: str = "a") -> Path:
    (folder / name).mkdir(parents=True)
    for index, mask in enumerate(masks):
        write_labels(folder / name / f"{index:05d}.png", mask)
    return folder


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write(tmp_path / "annotations", [annotated(i) for i in range(5)])


def spilled(frame: int) -> np.ndarray:
    """Object 1 grown into the void, but not beyond it."""
    grown = cv2.dilate((discs(frame) == 1).astype(np.uint8), np.ones((5, 5), np.uint8))
    return np.where((grown > 0) & rim(discs(frame)), 1, discs(frame)).astype(np.uint8)


@pytest.mark.parametrize("what", [discs, spilled, annotated])
def test_void_counts_for_neither_side(what: object, annotations: Path, tmp_path: Path) -> None:
    predictions = write(tmp_path / "p", [what(i) for i in range(5)])  # type: ignore[operator]
    result = measure_folders(predictions, annotations)
    assert result.sequences["a"].objects == {1: PERFECT, 2: PERFECT}
    assert result.with_void == ("a",)


def test_beyond_the_void_a_prediction_is_wrong(annotations: Path, tmp_path: Path) -> None:
    grown = [cv2.dilate(discs(i), np.ones((11, 11), np.uint8)) for i in range(5)]
    result = measure_folders(write(tmp_path / "p", grown), annotations).sequences["a"]
    assert all(0.3 < score.j < 0.9 for score in result.objects.values())


def test_where_255_is_an_id(annotations: Path, tmp_path: Path) -> None:
    predictions = write(tmp_path / "p", [annotated(i) for i in range(5)])
    result = measure_folders(predictions, annotations, rule=MaskRule(void=False))
    assert result.sequences["a"].objects == {1: PERFECT, 2: PERFECT, 255: PERFECT}
    plain = write(tmp_path / "q", [discs(i) for i in range(5)])
    third = measure_folders(plain, annotations, rule=MaskRule(void=False)).sequences["a"]
    assert third.objects[255] == Score(0.0, 0.0) and third.mean.j < 0.7


def test_a_frame_in_which_void_alone_is_left(annotations: Path, tmp_path: Path) -> None:
    """0 and 255 are not read as in DAVIS 2016, because other frames have ids."""
    hidden = np.where(discs(2) > 0, 255, 0).astype(np.uint8)
    write_labels(annotations / "a" / "00002.png", hidden)
    predictions = write(tmp_path / "p", [discs(i) for i in range(5)])
    assert measure_folders(predictions, annotations).sequences["a"].objects[1] == PERFECT


def test_0_and_255_alone_may_be_void_too(tmp_path: Path) -> None:
    annotations = write(tmp_path / "a", [(discs(i) > 0) * np.uint8(255) for i in range(5)])
    predictions = write(tmp_path / "p", [(discs(i) > 0).astype(np.uint8) for i in range(5)])
    result = measure_folders(predictions, annotations)
    assert result.sequences["a"].objects == {1: PERFECT} and not result.with_void
    write_labels(annotations / "a" / "00001.png", discs(1))
    result = measure_folders(predictions, annotations, rule=MaskRule(void=True))
    assert list(result.sequences["a"].objects) == [1, 2]


def test_sizes_that_differ_are_left_to_measure() -> None:
    void = Mask(np.zeros((3, 3), np.uint8), np.ones((3, 3), bool))
    assert outside_void(np.ones((2, 2), np.uint8), void).all()


def run(*arguments: object) -> object:
    return CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])


def test_the_command_says_so_once(annotations: Path, tmp_path: Path) -> None:
    predictions = write(tmp_path / "p", [discs(i) for i in range(5)])
    folders = ["--predictions", predictions, "--annotations", annotations]
    outcome = run(*folders, "--json", tmp_path / "r.json")
    assert outcome.exit_code == 0, outcome.output  # type: ignore[attr-defined]
    assert outcome.output.count("255 is void in the annotation of a") == 1  # type: ignore[attr-defined]
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["mean"] == {"J": 1.0, "F": 1.0, "JF": 1.0} and content["with_void"] == ["a"]
    for word, objects in (("--no-void", 3), ("--void", 2)):
        assert run(*folders, word, "--json", tmp_path / "r.json").exit_code == 0  # type: ignore[attr-defined]
        content = json.loads((tmp_path / "r.json").read_text())
        assert len(content["sequences"]["a"]["objects"]) == objects


def test_soft_predictions_are_scored_by_a_threshold(tmp_path: Path) -> None:
    annotations = write(tmp_path / "a", [(discs(i) > 0) * np.uint8(255) for i in range(3)])
    for index in range(3):
        path = tmp_path / "p" / "a" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = cv2.GaussianBlur((discs(index) > 0) * np.uint8(255), (0, 0), 2)
        Image.fromarray(shade).save(path)
    folders = ["--predictions", tmp_path / "p", "--annotations", annotations]
    refused = run(*folders)
    assert "soft or JPEG edges" in str(refused.exception)  # type: ignore[attr-defined]
    scored = run(*folders, "--threshold", "128", "--json", tmp_path / "r.json")
    assert scored.exit_code == 0, scored.output  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "r.json").read_text())["mean"]["J"] > 0.95
    both = run(*folders, "--threshold", "128", "--void")
    assert isinstance(both.exception, ConfigError)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_model_is_prompted_with_the_ids_alone(tmp_path: Path) -> None:
    """Void is not prompted as an object, and written masks are not changed by it."""
    frames, masks = (tmp_path / name / "a" for name in ("JPEGImages", "Annotations"))
    frames.mkdir(parents=True)
    write(masks.parent, [annotated(i) for i in range(3)])
    images = [np.full((*SIZE, 3), 90, np.uint8) for _ in range(3)]
    for index, image in enumerate(images):
        Image.fromarray(image).save(frames / f"{index:05d}.png")
    segmenter = Segmenter("munet", weights="random", device="cpu")
    sequence = SequenceRun(find_annotated(tmp_path)[0], segmenter)
    np.testing.assert_array_equal(np.unique(sequence.annotations[0]), [0, 1, 2])
    assert sequence.has_void
    sequence.answers = {"perfect": [discs(i) for i in range(3)]}
    sequence.finish(binary=False)
    assert sequence.scores["perfect"].objects == {1: PERFECT, 2: PERFECT}
    np.testing.assert_array_equal(sequence.answers["perfect"][1], discs(1))
