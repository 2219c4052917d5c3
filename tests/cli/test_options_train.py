"""Every option of `train`, in pairs that interact: what cannot work is refused by name, and the
rest works. The networks and clips are as small as they can be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from pairs import Row, pairwise
from quick_streams import QUICK
from typed import call, command_line_of, options_of, refused, write_files

from vosengine.commands import train as train_command
from vosengine.training.initialise import start_gently
from vosengine.training.objectives import for_clips, objective_for
from vosengine.training.recipe import Recipe
from vosengine.training.samples import Batch
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.zoo.registry import MODELS, build, list_models
from vosengine.zoo.weights import load_file, save, state_of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("given"))


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
    """The small configurations with fewer channels."""
    for model, changes in TRAINED.items():
        config = tiny_config(model, **{**QUICK.get(model, {}), **changes})
        monkeypatch.setitem(MODELS, model, replace(MODELS[model], small=config))
    monkeypatch.setattr(train_command, "HELD_OUT", (1, 3))


@pytest.mark.parametrize("row", TRAINS, ids=command_line_of)
@pytest.mark.usefixtures("_narrow")
def test_train(row: Row, inputs: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", {**row, "data": row["data"].replace("DATA", str(inputs))}
    if row["init"]:
        options["init"] = inputs / "other.safetensors"
        other = build("stm", tiny_config("stm", **GENTLE), seed=9)
        save(options["init"], "stm", tiny_config("stm", **GENTLE), state_of(other),
             trained=True, description="", licence="MIT")  # fmt: skip
    arguments = [*options_of(options), "--size", "64x64", "--steps", 1, "--device", "cpu"]
    ran = call("train", *arguments, "--out", out)
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
    results = []
    for narrow in (False, True):
        method = build(model, for_clips(MODELS[model].small), seed=1)
        start_gently(method)
        objective = objective_for(model, method.train().requires_grad_(True), recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            losses = objective.losses(batch, torch.Generator().manual_seed(0))
        results.append({name: float(loss.detach()) for name, loss in losses.items()})
    exact, rough = results
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


@pytest.mark.usefixtures("_narrow")
def test_train_with_a_worker(tmp_path: Path) -> None:
    arguments = ["--model", "stm", "--size", "64x64", "--steps", 1, "--batch", 1, "--frames", 2]
    arguments += ["--score-every", 0, "--workers", 1, "--device", "cpu"]
    ran = call("train", *arguments, "--out", tmp_path / "out")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert (tmp_path / "out" / "weights.safetensors").is_file()
