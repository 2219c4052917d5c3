"""Every option of every command, in pairs that interact: what cannot work is refused by name, and
the rest works. The networks and clips are as small as they can be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from conftest import FOLLOWERS, PROMPTED, PROPOSED, WITH_MEMORY, object_ids, tiny_config
from pairs import Row, pairwise
from PIL import Image
from quick_streams import QUICK
from typer.testing import CliRunner

from vosengine.cli import app
from vosengine.commands import train as train_command
from vosengine.detectors.file import write_proposals
from vosengine.errors import VosError
from vosengine.proposals import Proposals, boxes_of
from vosengine.registry import MODELS, build, list_models
from vosengine.training.initialise import start_gently
from vosengine.training.objectives import for_clips, objective_for
from vosengine.training.recipe import Recipe
from vosengine.training.samples import Batch
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import read_labels, write_labels
from vosengine.weights import load_file, save, state_of

LENGTH = 4
SIZE = 48, 64


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def options_of(row: Row) -> list[str]:
    """A row as it is typed; None and False are left out, True is the flag alone."""
    words = []
    for name, value in row.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def said(row: Row) -> str:
    return " ".join(options_of(row))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny weights of every model, a clip in DAVIS layout, masks, and proposals from a file."""
    root = tmp_path_factory.mktemp("given")
    for model in list_models():
        config = tiny_config(model, **QUICK.get(model, {}))
        tensors = state_of(build(model, config, seed=3))
        save(root / f"{model}.safetensors", model, config, tensors, trained=True,
             description="tiny", licence="MIT")  # fmt: skip
    clip = make_clip(ClipConfig(frames=LENGTH, height=48, width=64, objects=(2, 2)), seed=1)
    for folder in ("JPEGImages/480p/a", "Annotations/480p/a", "masks"):
        (root / folder).mkdir(parents=True)
    said = []
    for index, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        Image.fromarray(frame).save(root / f"JPEGImages/480p/a/{index:05}.jpg", quality=95)
        write_labels(root / f"Annotations/480p/a/{index:05}.png", mask)
        planes = torch.from_numpy(np.stack([mask == i for i in (1, 2)]))
        said.append(Proposals(boxes_of(planes), planes, torch.tensor([0.9, 0.8])))
    for index in (0, 2):
        write_labels(root / f"masks/{index:05}.png", clip.masks[index])
    write_labels(root / "first.png", clip.masks[0])
    write_proposals(root / "seen.json", said)
    return root


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


def words_of(row: Row, given: Path) -> list[str]:
    """A row of `run`, its files found."""
    found = dict(row)
    for name in ("mask", "proposals"):
        if found[name] is not None:
            kind, colon, file = found[name].rpartition(":")
            found[name] = f"{kind}{colon}{given / file}"
    weights = given / f"{row['model']}.safetensors"
    return [*options_of(found), "--weights", str(weights), "--device", "cpu"]


@pytest.mark.parametrize("row", RUNS, ids=said)
def test_run(row: Row, given: Path, tmp_path: Path) -> None:
    frames, out = given / "JPEGImages/480p/a", tmp_path / "out"
    ran = call("run", frames, "--out", out, *words_of(row, given))
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
    shown = {1, 2} if row["mask"] else set()
    assert {*summary["objects"]} >= shown
    for index in range(count):
        labels = read_labels(out / f"{index:05}.png")
        assert labels.shape == SIZE
        assert object_ids(labels) <= {*summary["objects"]}
    if row["mask"]:
        wanted = read_labels(given / "first.png")
        first = read_labels(out / "00000.png")
        np.testing.assert_array_equal(first[wanted > 0], wanted[wanted > 0])


def test_what_never_goes_together_is_refused_by_name(given: Path, tmp_path: Path) -> None:
    """All pairs that no row of `run` has."""
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
        shown = "first.png" if model in FOLLOWERS else None
        row = {**plain, "model": model, "mask": shown, name: value}
        error = refused("run", given / "JPEGImages/480p/a", "--out", tmp_path / "o",
                        *words_of(row, given))  # fmt: skip
        assert str(error).startswith(f"{name}: {model} "), error
    for model in list_models():
        row = {**plain, "model": model, "precision": "tf32"}
        error = refused("run", given / "JPEGImages/480p/a", "--out", tmp_path / "o",
                        *words_of(row, given))  # fmt: skip
        assert str(error) == "precision: tf32 is a GPU's; wanted fp32, bf16, fp16 or auto"
    assert not list(tmp_path.rglob("*.png"))


def refused(*words: object) -> VosError:
    ran = call(*words)
    assert isinstance(ran.exception, VosError), (words, ran.output, ran.exception)
    return ran.exception


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


@pytest.mark.parametrize("row", EVALS, ids=said)
def test_eval(row: Row, given: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / row[name] for name in ("out", "json") if row[name]}
    words = [*options_of({**row, **files}), "--data", given, "--device", "cpu"]
    ran = call("eval", *words, "--weights", given / f"{row['model']}.safetensors")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    if row["json"]:
        content = json.loads(files["json"].read_text())
        assert 0 <= content["mean"]["J"] <= 1
    if row["out"]:
        assert len(list(files["out"].rglob("*.png"))) == (row["limit"] or LENGTH)


# train

TRAIN: dict[str, tuple[Any, ...]] = {
    "model": list_models(),
    "precision": ("fp32", "bf16"),
    "batch": (1, 2),
    "frames": (2, 3),
    "data": ("synthetic", "davis:DATA=3,synthetic=1"),
    "score-every": (0, 1),
    "init": (None, "other.safetensors"),
    "seed": (None, 4),
    "rate": (None, 1e-4),
}
GENTLE = {"norm": "group", "read_masks": True, "key_stride": 8, "similarity": "l2"}
TRAINED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("stm", "munet", "giel"), GENTLE),
    "dmn_aoa": {"norm": "group", "read_masks": True},
    **{model: {"norm": "group"} for model in ("imcnet", "target_aware")},
}


TRAINS, _ = pairwise(TRAIN, lambda row: True)


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small configurations, narrower still."""
    for model, changes in TRAINED.items():
        config = tiny_config(model, **{**QUICK.get(model, {}), **changes})
        monkeypatch.setitem(MODELS, model, replace(MODELS[model], small=config))
    monkeypatch.setattr(train_command, "HELD_OUT", (1, 3))


@pytest.mark.parametrize("row", TRAINS, ids=said)
@pytest.mark.usefixtures("_narrow")
def test_train(row: Row, given: Path, tmp_path: Path) -> None:
    out, found = tmp_path / "out", {**row, "data": row["data"].replace("DATA", str(given))}
    if row["init"]:
        found["init"] = given / "other.safetensors"
        other = build("stm", tiny_config("stm", **GENTLE), seed=9)
        save(found["init"], "stm", tiny_config("stm", **GENTLE), state_of(other),
             trained=True, description="", licence="MIT")  # fmt: skip
    words = [*options_of(found), "--size", "64x64", "--steps", 1, "--device", "cpu"]
    ran = call("train", *words, "--out", out)
    assert ran.exit_code == 0, (ran.output, ran.exception)
    line = json.loads((out / "log.jsonl").read_text())
    assert all(np.isfinite(loss) for loss in line["losses"].values())
    assert np.isfinite(line["gradient_norm"])
    assert (line["score"] is not None) is bool(row["score-every"])
    method, card = load_file(row["model"], out / "weights.safetensors")
    assert card.trained
    assert all(tensor.isfinite().all() for tensor in method.state_dict().values())


@pytest.mark.parametrize("model", list_models())
@pytest.mark.usefixtures("_narrow")
def test_training_in_bf16_loses_what_it_loses_in_fp32(model: str) -> None:
    recipe = Recipe(frames=3, size=(64, 64))
    clip = make_clip(ClipConfig(frames=3, height=64, width=64, objects=(2, 2)), seed=1)
    frames, masks = (torch.from_numpy(x)[None] for x in (clip.frames, clip.masks))
    batch = Batch(frames, masks, (2,), ("drawn",))
    found = []
    for narrow in (False, True):
        method = build(model, for_clips(MODELS[model].small), seed=1)
        start_gently(method)
        objective = objective_for(model, method.train().requires_grad_(True), recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            losses = objective.losses(batch, torch.Generator().manual_seed(0))
        found.append({name: float(loss.detach()) for name, loss in losses.items()})
    exact, rough = found
    assert rough == pytest.approx(exact, rel=0.02, abs=0.01)
    assert rough != exact


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp16"], "precision: wanted fp32 or bf16, given 'fp16'"),
        (["--parts", "dnet"], "parts: stm is trained as a whole"),
        (["--size", "50x64"], "size: wanted two multiples of 16"),
        (["--rate", "2"], "rate: wanted 0..1"),
        (["--config", "large"], "config: wanted lite, small or paper"),
        (["--data", "nothing"], "'nothing' is no source"),
        (["--resume"], "no such checkpoint"),
        (["--minutes", "nan"], "minutes: wanted"),
        (["--save-every", "nan"], "save_every: wanted"),
    ],
)
def test_what_train_refuses(words: list[str], message: str, tmp_path: Path) -> None:
    error = refused("train", "--model", "stm", "--out", tmp_path / "out", "--device", "cpu", *words)
    assert message in str(error)


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


@pytest.mark.parametrize("row", DRAWN, ids=said)
def test_clips(row: Row, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = call("clips", "--out", out, "--count", 4, "--size", "32x48", *options_of(row))
    assert ran.exit_code == 0, (ran.output, ran.exception)
    if row["davis"]:
        assert len(list(out.rglob("*.png"))) == 4 * row["frames"]
    else:
        assert list(out.iterdir())


def test_demo_draws_what_it_is_asked_for(given: Path, tmp_path: Path) -> None:
    words = ["--frames", 2, "--size", "48x64", "--model", "imcnet"]
    for seed in (1, 2):
        ran = call("demo", *words, "--seed", seed, "--out", tmp_path / str(seed))
        assert ran.exit_code == 0, (ran.output, ran.exception)
        assert "mean J of the foreground" in ran.output
    clips = [(tmp_path / seed / "input" / "clip.mp4").read_bytes() for seed in "12"]
    assert clips[0] != clips[1]


def test_demo_segments_a_clip_of_the_users(given: Path, tmp_path: Path) -> None:
    clip, out = given / "JPEGImages/480p/a", tmp_path / "out"
    words = ("demo", "--clip", clip, "--out", out)
    ran = call(*words, "--model", "stm", "--mask", given / "first.png")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert "mean J" not in ran.output  # of this clip nobody knows it
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["complete"], summary["frame_count"]) == (True, LENGTH)
    assert not (out / "input").exists()
    error = refused(*words, "--model", "stm")
    assert str(error) == "mask: stm follows what a mask shows; name one with --mask"
    for name, value in {"seed": 3, "frames": 3, "size": "48x64"}.items():
        error = refused(*words, f"--{name}", value)
        assert str(error) == f"{name}: is of a drawn clip, and --clip names one; leave it out"
    error = refused("demo", "--out", tmp_path / "o", "--mask", given / "first.png")
    assert str(error) == "mask: is of a clip of yours; name that with --clip, or leave it out"


@pytest.mark.parametrize("void", ["--mask-void", "--no-mask-void"])
def test_run_takes_void_either_way(void: str, given: Path, tmp_path: Path) -> None:
    words = ["--model", "stm", "--weights", given / "stm.safetensors", "--device", "cpu"]
    ran = call("run", given / "JPEGImages/480p/a", "--mask", given / "first.png", *words, void,
               "--limit", 2, "--out", tmp_path / "out")  # fmt: skip
    assert ran.exit_code == 0, (ran.output, ran.exception)
    wanted = read_labels(given / "first.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "00000.png"), wanted)


@pytest.mark.usefixtures("_narrow")
def test_train_with_a_worker(tmp_path: Path) -> None:
    words = ["--model", "stm", "--size", "64x64", "--steps", 1, "--batch", 1, "--frames", 2]
    words += ["--score-every", 0, "--workers", 1, "--device", "cpu"]
    ran = call("train", *words, "--out", tmp_path / "out")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert (tmp_path / "out" / "weights.safetensors").is_file()


def test_info_counts_what_it_is_asked_for() -> None:
    ran = call("info", "imcnet", "--size", "64x96", "--objects", 2, "--max-objects", 4)
    assert ran.exit_code == 0
    assert "imcnet: 64x96, 2 objects" in ran.output


def test_every_option_is_tried_somewhere() -> None:
    """In some test, as it is typed, or as a row of the tables above has it."""
    tests = Path(__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in tests.glob("test_*.py"))
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
