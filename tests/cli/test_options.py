"""Every option of every command, in pairs that interact: what cannot work is refused by name, and
the rest works. The networks and clips are as small as they can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import FOLLOWERS, PROMPTED, PROPOSED, WITH_MEMORY, object_ids
from pairs import Row, pairwise
from test_options_train import TRAIN
from typed import LENGTH, SIZE, call, command_line_of, options_of, refused, write_files

from vosengine.cli.app import app
from vosengine.video import read_labels
from vosengine.zoo.registry import list_models


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("given"))


# run

RUN: dict[str, tuple[Any, ...]] = {
    "model": list_models(),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "engine": ("fast", "eager"),
    "size": (None, "native", "32", "40x56"),
    "memory": (None, "every-2", "all", "afb"),
    "online": (False, True),
    "proposals": (None, "file:seen.json", "dnet:target_aware.safetensors"),
    "mask": (None, "first.png", "masks"),
    "max-objects": (None, 5),
    "limit": (None, 2),
    "checkpoint": (None, 1),
    "no-overlay": (False, True),
    "fps": (None, 7.5),
}


def run_fits(row: Row) -> bool:
    model = row["model"]
    wants_mask = (row["mask"] is not None) if model in FOLLOWERS else True
    takes_mask = row["mask"] is None or model in PROMPTED
    takes_proposals = row["proposals"] is None or model in PROPOSED
    wants_proposals = row["proposals"] is not None or model != "dmn_aoa"  # whose own D-Net is large
    takes_memory = row["memory"] is None or model in WITH_MEMORY
    return wants_mask and takes_mask and takes_proposals and wants_proposals and takes_memory


RUNS, NEVER = pairwise(RUN, run_fits)


def words_of(row: Row, inputs: Path) -> list[str]:
    """A row of options of `run`, with the paths of its files."""
    options = dict(row)
    for name in ("mask", "proposals"):
        if options[name] is not None:
            kind, colon, file = options[name].rpartition(":")
            options[name] = f"{kind}{colon}{inputs / file}"
    weights = inputs / f"{row['model']}.safetensors"
    return [*options_of(options), "--weights", str(weights), "--device", "cpu"]


@pytest.mark.parametrize("row", RUNS, ids=command_line_of)
def test_run(row: Row, inputs: Path, tmp_path: Path) -> None:
    frames, out = inputs / "JPEGImages/480p/a", tmp_path / "out"
    ran = call("run", frames, "--out", out, *words_of(row, inputs))
    assert ran.exit_code == 0, (ran.output, ran.exception)
    summary = json.loads((out / "summary.json").read_text())
    count = row["limit"] or LENGTH
    assert (summary["complete"], summary["frame_count"]) == (True, count)
    assert (out / "overlay.mp4").exists() is not row["no-overlay"]
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    assert summary["precision"] == names.get(row["precision"], summary["precision"])
    height = {None: 48, "native": 48, "32": 32, "40x56": 40}[row["size"]]
    stride = 32 if row["model"] == "imcnet" else 16
    assert summary["network_size"][0] == -(-height // stride) * stride
    prompted = {1, 2} if row["mask"] else set()
    assert {*summary["objects"]} >= prompted
    for index in range(count):
        labels = read_labels(out / f"{index:05}.png")
        assert labels.shape == SIZE
        assert object_ids(labels) <= {*summary["objects"]}
    if row["mask"]:
        wanted = read_labels(inputs / "first.png")
        first = read_labels(out / "00000.png")
        np.testing.assert_array_equal(first[wanted > 0], wanted[wanted > 0])


def test_what_never_goes_together_is_refused_by_name(inputs: Path, tmp_path: Path) -> None:
    """Pairs of options that no row of `run` contains."""
    assert {(*a, *b) for a, b in NEVER} == {
        *(("model", m, "memory", v) for m in ("giel", "imcnet", "target_aware")
          for v in RUN["memory"][1:]),
        *(("model", m, "mask", None) for m in FOLLOWERS),
        *(("model", "imcnet", "mask", v) for v in RUN["mask"][1:]),
        *(("model", m, "proposals", v) for m in {*list_models()} - {*PROPOSED}
          for v in RUN["proposals"][1:]),
        ("model", "dmn_aoa", "proposals", None),
        *(("memory", v, "mask", None) for v in RUN["memory"][1:]),  # such models follow masks
    }  # fmt: skip
    plain: Row = dict.fromkeys(RUN)
    one_each = {(model, name): value for (_, model), (name, value) in sorted(NEVER, key=str)}
    for (model, name), value in one_each.items():
        if model not in list_models() or (model, value) == ("dmn_aoa", None):
            continue
        mask = "first.png" if model in FOLLOWERS else None
        row = {**plain, "model": model, "mask": mask, name: value}
        error = refused("run", inputs / "JPEGImages/480p/a", "--out", tmp_path / "o",
                        *words_of(row, inputs))  # fmt: skip
        assert str(error).startswith(f"{name}: {model} "), error
    for model in list_models():
        row = {**plain, "model": model, "precision": "tf32"}
        error = refused("run", inputs / "JPEGImages/480p/a", "--out", tmp_path / "o",
                        *words_of(row, inputs))  # fmt: skip
        assert str(error) == "precision: tf32 is for GPUs; wanted fp32, bf16, fp16 or auto"
    assert not list(tmp_path.rglob("*.png"))


# eval

EVAL: dict[str, tuple[Any, ...]] = {
    "model": tuple(m for m in list_models() if m != "dmn_aoa"),  # whose own D-Net is large
    "precision": ("fp32", "bf16"),
    "size": (None, "native", "40x56"),
    "memory": (None, "every-2", "afb"),
    "limit": (None, 3),
    "binary": (False, True),
    "out": (None, "masks"),
    "json": (None, "found.json"),
}
EVALS, _ = pairwise(EVAL, lambda row: row["memory"] is None or row["model"] in WITH_MEMORY)


@pytest.mark.parametrize("row", EVALS, ids=command_line_of)
def test_eval(row: Row, inputs: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / row[name] for name in ("out", "json") if row[name]}
    arguments = [*options_of({**row, **files}), "--data", inputs, "--device", "cpu"]
    ran = call("eval", *arguments, "--weights", inputs / f"{row['model']}.safetensors")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    if row["json"]:
        content = json.loads(files["json"].read_text())
        assert 0 <= content["mean"]["J"] <= 1
    if row["out"]:
        assert len(list(files["out"].rglob("*.png"))) == (row["limit"] or LENGTH)


# clips, and all the commands together

CLIPS: dict[str, tuple[Any, ...]] = {
    "frames": (2, 3),
    "seed": (None, 5),
    "labelled": (False, True),
    "workers": (None, 2),
    "davis": (False, True),
    "level": (None, 0, 3),
}
DRAWN, _ = pairwise(
    CLIPS,
    lambda row: (row["level"] is None or row["davis"]) and not (row["workers"] and row["davis"]),
)


@pytest.mark.parametrize("row", DRAWN, ids=command_line_of)
def test_clips(row: Row, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = call("clips", "--out", out, "--count", 4, "--size", "32x48", *options_of(row))
    assert ran.exit_code == 0, (ran.output, ran.exception)
    if row["davis"]:
        assert len(list(out.rglob("*.png"))) == 4 * row["frames"]
    else:
        assert list(out.iterdir())


def test_demo_draws_what_it_is_asked_for(inputs: Path, tmp_path: Path) -> None:
    arguments = ["--frames", 2, "--size", "48x64", "--model", "imcnet"]
    for seed in (1, 2):
        ran = call("demo", *arguments, "--seed", seed, "--out", tmp_path / str(seed))
        assert ran.exit_code == 0, (ran.output, ran.exception)
        assert "mean J of the foreground" in ran.output
    clips = [(tmp_path / seed / "input" / "clip.mp4").read_bytes() for seed in "12"]
    assert clips[0] != clips[1]


def test_demo_segments_a_clip_of_the_users(inputs: Path, tmp_path: Path) -> None:
    clip, out = inputs / "JPEGImages/480p/a", tmp_path / "out"
    arguments = ("demo", "--clip", clip, "--out", out)
    ran = call(*arguments, "--model", "stm", "--mask", inputs / "first.png")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert "mean J" not in ran.output  # of this clip nobody knows it
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["complete"], summary["frame_count"]) == (True, LENGTH)
    assert not (out / "input").exists()
    error = refused(*arguments, "--model", "stm")
    assert str(error) == "mask: stm needs a mask of the first frame; give one with --mask"
    for name, value in {"seed": 3, "frames": 3, "size": "48x64"}.items():
        error = refused(*arguments, f"--{name}", value)
        assert str(error) == f"{name}: is for drawn clips and cannot be used with --clip; omit it"
    error = refused("demo", "--out", tmp_path / "o", "--mask", inputs / "first.png")
    assert str(error) == "mask: is for a clip of your own; give that with --clip, or omit it"


@pytest.mark.parametrize("void", ["--mask-void", "--no-mask-void"])
def test_run_takes_void_either_way(void: str, inputs: Path, tmp_path: Path) -> None:
    arguments = ["--model", "stm", "--weights", inputs / "stm.safetensors", "--device", "cpu"]
    ran = call("run", inputs / "JPEGImages/480p/a", "--mask", inputs / "first.png", *arguments,
               void, "--limit", 2, "--out", tmp_path / "out")  # fmt: skip
    assert ran.exit_code == 0, (ran.output, ran.exception)
    wanted = read_labels(inputs / "first.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "00000.png"), wanted)


def test_info_counts_what_it_is_asked_for() -> None:
    ran = call("info", "imcnet", "--size", "64x96", "--objects", 2, "--max-objects", 4)
    assert ran.exit_code == 0
    assert "imcnet: 64x96, 2 objects" in ran.output


def test_every_option_is_tried_somewhere() -> None:
    """Each option occurs in a test, literally or in a row of the tables above."""
    tests = Path(__file__).resolve().parents[1]
    text = "".join(path.read_text(encoding="utf-8") for path in tests.rglob("test_*.py"))
    rows = {"run": RUN, "eval": EVAL, "train": TRAIN, "clips": CLIPS}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {*rows} < {*commands}
    for name, command in commands.items():
        for option in command.params:
            typed = [word for word in (*option.opts, *option.secondary_opts) if word[:2] == "--"]
            tried = [
                word
                for word in typed
                if f'"{word}"' in text or f"{word} " in text or word[2:] in rows.get(name, {})
            ]
            assert tried or not typed or typed == ["--help"], f"{name} {typed[0]} is in no test"
