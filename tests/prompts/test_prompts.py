"""Masks from boxes, points and scribbles: GrabCut, errors, and `run`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typed import call, refused, write_files

from vosengine.commands.marks import MarkedObject, parse_marks
from vosengine.commands.run import RunOptions, run
from vosengine.errors import ConfigError, InputError
from vosengine.prompts import mask_from
from vosengine.prompts.crop import box_of
from vosengine.prompts.masks import click_ships
from vosengine.video import read_labels

SIZE = 120, 160
BOX = 40, 30, 60, 50  # of the left one of two squares
COLOURS: Any = {"method": "grabcut"}


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A grey frame [H, W, 3] with two red squares, and the left one's mask as bool [H, W]."""
    rng = np.random.default_rng(0)
    frame = np.full((*SIZE, 3), 90.0)
    frame[35:75, 45:95] = frame[35:75, 115:150] = (200, 40, 40)
    truth = np.zeros(SIZE, bool)
    truth[35:75, 45:95] = True
    return np.clip(frame + rng.normal(0, 6, frame.shape), 0, 255).astype(np.uint8), truth


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(((mask > 0) & truth).sum() / ((mask > 0) | truth).sum())


@pytest.mark.parametrize(
    "marks",
    [
        {"box": BOX},
        {"box": BOX, "points": [(70, 55, True), (105, 55, False)]},
        {"points": [(70, 55, True), (130, 55, False)]},
    ],
)
def test_what_is_marked_is_cut_out_by_its_colours(marks: dict[str, Any]) -> None:
    frame, truth = picture()
    mask = mask_from(frame, **marks, **COLOURS)
    assert mask.dtype == np.uint8 and mask.shape == SIZE
    assert {*np.unique(mask)} == {0, 1}
    assert overlap(mask, truth) > 0.9
    np.testing.assert_array_equal(mask, mask_from(frame, **marks, **COLOURS))


def test_nothing_outside_the_box_is_taken_and_points_hold() -> None:
    frame, _ = picture()
    both = mask_from(frame, points=[(70, 55, True), (130, 55, True)], **COLOURS)
    assert both[55, 130]
    assert not mask_from(frame, box=BOX, **COLOURS)[:, 102:].any()
    beside = mask_from(frame, box=BOX, points=[(70, 55, False)], **COLOURS)
    assert not beside[55, 70]


def test_scribbles_and_the_last_mask_count() -> None:
    frame, truth = picture()
    scribbles = np.zeros(SIZE, np.uint8)
    scribbles[54:57, 50:90], scribbles[54:57, 118:148] = 1, 2
    assert overlap(mask_from(frame, scribbles=scribbles, **COLOURS), truth) > 0.9
    last = np.zeros(SIZE, np.uint8)
    last[35:75, 45:80] = 1
    marks: dict[str, Any] = {"points": [(88, 55, True), (130, 55, False)], "previous": last}
    assert overlap(mask_from(frame, **marks, **COLOURS), truth) > overlap(last, truth) + 0.1


@pytest.mark.parametrize(
    "box", [(0, 0, 160, 120), (10, 10, 1, 1), (159, 119, 1, 1), (0, 0, 160, 1)]
)
def test_boxes_without_colours_to_learn_are_their_own_answer(box: tuple[int, ...]) -> None:
    x, y, wide, high = box
    mask = mask_from(picture()[0], box=(x, y, wide, high), **COLOURS)
    assert mask.shape == SIZE
    assert not mask[:y].any() and not mask[y + high :].any()
    if wide * high == 1 or wide * high == 160 * 120:
        assert mask.sum() == wide * high


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"box": None}, "prompt: nothing is marked"),
        ({"box": None, "previous": np.ones(SIZE, np.uint8)}, "prompt: nothing is marked"),
        ({"box": None, "points": [(3, 3, False)]}, "prompt: only background is marked"),
        ({"box": (100, 0, 61, 5)}, "box: x 100..161, y 0..5 leaves the frame of 160 x 120"),
        ({"box": (-1, 0, 5, 5)}, "box: x -1..4"),
        ({"box": (0, 0, 0, 5)}, "box: wanted a width and a height of at least 1, given 0 x 5"),
        ({"box": (0.5, 0, 5, 5)}, "box: wanted four whole numbers"),
        ({"box": (0, 0, 5)}, "box: wanted four whole numbers"),
        ({"points": [(160, 0, True)]}, "points: 160, 0 lies outside the frame of 160 x 120"),
        ({"points": [(0, -1, True)]}, "points: 0, -1 lies outside"),
        ({"points": [(1, 1)]}, "points: wanted x, y as whole numbers and True or False"),
        ({"points": [(1, 1, 1)]}, "points: wanted x, y as whole numbers and True or False"),
        ({"scribbles": np.zeros(SIZE, np.int32)}, "scribbles: wanted a uint8 array [H, W]"),
        ({"scribbles": np.full(SIZE, 3, np.uint8)}, "scribbles: wanted values 0 to 2"),
        ({"previous": np.full(SIZE, 255, np.uint8)}, "previous: wanted values 0 to 1"),
        ({"previous": np.zeros((5, 5), np.uint8)}, "previous: wanted the frame's size [120, 160]"),
        ({"method": "magic"}, "method: wanted one of auto, click, grabcut, given 'magic'"),
    ],
)  # fmt: skip
def test_wrong_marks_are_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        mask_from(picture()[0], **{"box": BOX, **COLOURS, **changed})
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((7, 9, 3), np.uint8), [[1]]],
)
def test_frames_of_another_kind_are_refused(frame: Any) -> None:
    with pytest.raises(InputError, match=r"^frame: wanted"):
        mask_from(frame, box=(0, 0, 2, 2), **COLOURS)


def test_colours_alone_need_no_torch() -> None:
    code = (
        "import sys, numpy as np; from vosengine.prompts import mask_from;"
        "f = np.zeros((64, 64, 3), np.uint8); f[20:40, 20:40] = 255;"
        "m = mask_from(f, box=(16, 16, 30, 30), method='grabcut');"
        "print(int(m.sum()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["400", "False"]


# as they are typed


def test_boxes_are_numbered_in_their_order_or_by_name() -> None:
    one = MarkedObject(1, (1, 2, 3, 4))
    assert parse_marks(["1,2,3,4", "5,6,7,8"], []) == (one, MarkedObject(2, (5, 6, 7, 8)))
    assert parse_marks(["9:5,6,7,8", "1:1,2,3,4"], []) == (one, MarkedObject(9, (5, 6, 7, 8)))
    points = ((3, 3, True), (8, 9, False))
    assert parse_marks([], ["3,3", "8,9,-"]) == (MarkedObject(1, None, points),)
    assert parse_marks(["4:1,2,3,4"], ["3,3", "4:8,9,-"]) == (
        MarkedObject(4, (1, 2, 3, 4), points),
    )
    assert parse_marks(["1,2,3,4"], ["2:3,3", "2:8,9,-"]) == (one, MarkedObject(2, None, points))


@pytest.mark.parametrize(
    ("boxes", "points", "message"),
    [
        (["1,2,3"], [], "box: wanted [N:]X,Y,W,H in pixels, given '1,2,3'"),
        (["-1,2,3,4"], [], "box: wanted [N:]X,Y,W,H"),
        ([], ["1;2"], "point: wanted [N:]X,Y on the object"),
        ([], ["1,2,+"], "point: wanted [N:]X,Y on the object"),
        (["1,2,3,4", "2:1,2,3,4"], [], "box: only some are numbered"),
        (["2:1,2,3,4", "2:1,2,3,4"], [], "box: object 2 has two boxes"),
        (["0:1,2,3,4"], [], "box: wanted objects 1 to 255, given 0"),
        ([], ["256:1,2"], "point: wanted objects 1 to 255, given 256"),
        (["1,2,3,4", "5,6,7,8"], ["1,2"], "point: '1,2' could belong to any of the boxes"),
    ],
)
def test_words_that_mark_nothing_are_refused(
    boxes: list[str], points: list[str], message: str
) -> None:
    with pytest.raises(InputError) as refusal:
        parse_marks(boxes, points)
    assert str(refusal.value).startswith(message)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("given"))


def arguments_for(folder: Path, model: str = "stm") -> list[object]:
    weights = folder / f"{model}.safetensors"
    return ["--model", model, "--weights", weights, "--device", "cpu", "--limit", 2, "--no-overlay"]


def boxes(folder: Path) -> list[tuple[int, int, int, int]]:
    """Of objects 1 and 2 in the first frame."""
    labels = read_labels(folder / "first.png")
    return [box_of((labels == number).astype(np.uint8)) for number in (1, 2)]


@pytest.mark.parametrize("method", ["grabcut", "auto"])
@pytest.mark.slow
def test_run_follows_what_is_marked(method: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, two = (",".join(map(str, box)) for box in boxes(folder))
    x, y, wide, high = boxes(folder)[1]
    inside = x + wide // 2, y + high // 2
    marks = ["--box", one, "--box", two, "--point", "2:{},{}".format(*inside)]
    ran = call("run", folder / "JPEGImages/480p/a", "--out", out, *arguments_for(folder), *marks,
               "--point", "1:0,47,-", "--prompt-method", method)  # fmt: skip
    assert ran.exit_code == 0, (ran.output, ran.exception)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["objects"] == [1, 2]
    assert summary["mask"]["marked"][1] == {
        "object": 2, "box": [x, y, wide, high], "points": [[*inside, True]],
    }  # fmt: skip
    first = read_labels(out / "00000.png")
    assert first[inside[1], inside[0]] == 2
    if method == "grabcut":
        for number, (x, y, wide, high) in enumerate(boxes(folder), 1):
            first[y : y + high, x : x + wide] *= first[y : y + high, x : x + wide] != number
        assert not first.any()


def test_a_run_that_began_with_marks_is_resumed(folder: Path, tmp_path: Path) -> None:
    x, y, wide, high = boxes(folder)[0]
    options = RunOptions(
        source=str(folder / "JPEGImages/480p/a"), model="stm", out=tmp_path / "out",
        boxes=(f"{x},{y},{wide},{high}",), points=(f"{x + wide // 2},{y + high // 2}",),
        prompt_method="grabcut", weights=str(folder / "stm.safetensors"), device="cpu",
    )  # fmt: skip
    seen: list[int] = []
    stopped = run(options, report=lambda p: seen.append(p.done), should_stop=lambda: len(seen) > 1)
    assert not stopped["complete"]
    assert run(replace(options, resume=True))["complete"]
    whole = replace(options, out=tmp_path / "whole")
    run(whole)
    for index in range(4):
        name = f"{index:05}.png"
        np.testing.assert_array_equal(
            read_labels(options.out / name), read_labels(whole.out / name)
        )


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (["--box", "1,1,9,9", "--mask", "first.png"], ConfigError, "mask: cannot be used"),
        (["--point", "9,9", "--mask-void"], ConfigError, "mask_void: cannot be used"),
        (["--point", "9,9", "--threshold", 5], ConfigError, "threshold: cannot be used"),
        (["--prompt-method", "grabcut"], ConfigError, "prompt_method: is for boxes and points"),
        (["--box", "1,1,9,9", "--prompt-method", "x"], ConfigError, "prompt_method: wanted one of"),
        (["--box", "60,1,9,9"], InputError, "object 1: box: x 60..69"),
        (["--point", "3:1,1,-"], InputError, "object 3: prompt: only background is marked"),
        (["--box", "1,1,9"], InputError, "box: wanted [N:]X,Y,W,H"),
        ([], InputError, "mask: stm needs a prompt; wanted --mask"),
    ],
)  # fmt: skip
def test_marks_that_cannot_be_are_refused_and_nothing_is_written(
    changed: list[Any], kind: type[Exception], message: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    changed = [folder / x if x == "first.png" else x for x in changed]
    error = refused(
        "run", folder / "JPEGImages/480p/a", "--out", out, *arguments_for(folder), *changed
    )
    assert isinstance(error, kind)
    assert str(error).startswith(message)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(("option", "value"), [("--box", "1,1,9,9"), ("--point", "9,9")])
def test_models_that_take_no_mask_take_no_marks(
    option: str, value: str, folder: Path, tmp_path: Path
) -> None:
    error = refused("run", folder / "JPEGImages/480p/a", "--out", tmp_path / "o",
                    *arguments_for(folder, "imcnet"), option, value)  # fmt: skip
    name = option.removeprefix("--")
    assert str(error) == (f"{name}: imcnet finds the foreground by itself and takes none; omit it")


def test_auto_is_the_network_where_it_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    from vosengine.prompts import click, masks

    frame, _ = picture()
    monkeypatch.setattr(click, "click", lambda *_: np.full(SIZE, 7, np.uint8))
    assert (mask_from(frame, box=BOX)[0, 0] == 7) == click_ships()
    monkeypatch.setattr(masks, "click_ships", lambda: False)
    np.testing.assert_array_equal(mask_from(frame, box=BOX), mask_from(frame, box=BOX, **COLOURS))
    assert mask_from(frame, box=BOX, method="click")[0, 0] == 7
