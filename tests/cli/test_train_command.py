"""`vosengine train`, `clips` and `plot` on the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config

from vosengine.cli.app import main
from vosengine.commands import train as command
from vosengine.commands.train import TrainOptions, held_out, train
from vosengine.errors import ConfigError, InputError, VosError, WeightsError
from vosengine.training.checkpoint import load_checkpoint
from vosengine.training.initialise import initialise_from
from vosengine.training.recipe import recipe_for
from vosengine.zoo.registry import MODELS, build, list_models
from vosengine.zoo.weights import load_file, save, state_of

TINY = {
    "stm": {"norm": "group", "read_masks": True, "key_stride": 8, "similarity": "l2"},
    "imcnet": {"norm": "group"},
    "target_aware": {"norm": "group"},
}
QUICK = {"steps": 4, "batch": 2, "frames": 3, "size": (64, 96)}


@pytest.fixture(autouse=True)
def _tiny_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small configurations with fewer channels."""
    for model, changes in TINY.items():
        small = tiny_config(model, **changes)
        monkeypatch.setitem(MODELS, model, replace(MODELS[model], small=small))


def options(out: Path, model: str = "stm", **changes: Any) -> TrainOptions:
    arguments: dict[str, Any] = {"changes": QUICK, "device": "cpu", "score_every": 2, **changes}
    return TrainOptions(model, out, **arguments)


@pytest.mark.parametrize("model", sorted(TINY))
def test_a_run_ends_with_weights_that_load(model: str, tmp_path: Path) -> None:
    scores: list[float] = []
    result = train(
        options(tmp_path, model),
        report=lambda p: scores.append(p.score) if p.score is not None else None,
    )
    assert result.finished
    assert result.steps == 4
    method, card = load_file(model, result.weights)
    assert card.trained
    assert "4 steps on synthetic" in card.description
    assert method.config == MODELS[model].small
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)


def test_a_run_that_is_cut_and_resumed_is_the_same(tmp_path: Path) -> None:
    whole = train(options(tmp_path / "whole"))
    count = iter(range(99))
    first = train(options(tmp_path / "cut"), should_stop=lambda: next(count) == 2)
    assert (first.steps, first.finished) == (2, False)
    with pytest.raises(InputError, match="holds a training run; go on with it by --resume"):
        train(options(tmp_path / "cut"))
    second = train(options(tmp_path / "cut", resume=True))
    assert second.finished
    one, other = (
        load_checkpoint(result.weights.parent / "checkpoint.pt") for result in (whole, second)
    )
    for part in ("network", "averaged"):
        for name, tensor in one[part].items():
            assert torch.equal(tensor, other[part][name]), (part, name)


def test_killed_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    """kill -9 during training, with a checkpoint after every step."""
    arguments = [
        *("train", "--model", "stm", "--data", "synthetic", "--device", "cpu"),
        *("--steps", "5", "--batch", "1", "--frames", "2", "--size", "64x96"),
        *("--save-every", "0", "--score-every", "0"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "vosengine", *arguments, "--out"]
    killed = subprocess.Popen([*start, str(tmp_path / "cut")], env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    reached = load_checkpoint(tmp_path / "cut" / "checkpoint.pt")["step"]
    assert 1 <= reached < 5
    subprocess.run([*start, str(tmp_path / "cut"), "--resume"], env=environment, check=True)
    subprocess.run([*start, str(tmp_path / "whole")], env=environment, check=True)
    one, other = (load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("cut", "whole"))
    assert one["step"] == other["step"] == 5
    for part in ("network", "averaged"):
        for name, tensor in one[part].items():
            assert torch.equal(tensor, other[part][name]), (part, name)


def test_a_clip_has_a_past(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frames: wanted 2 or more, given 1"):
        train(options(tmp_path, changes={"frames": 1}))
    assert not list(tmp_path.iterdir())


def test_minutes_stop_a_run(tmp_path: Path) -> None:
    result = train(options(tmp_path, minutes=1e-9))
    assert not result.finished
    assert result.steps < 4
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == result.steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "large"}, "config: wanted lite, small or paper, given 'large'"),
        ({"data": "imagenet"}, "'imagenet' is no source"),
        ({"model": "sam"}, "wanted one of stm"),
        ({"changes": {"size": (60, 96)}}, "size: wanted two multiples of 16"),
        ({"resume": True}, "no such checkpoint"),
        ({"init": Path("none.safetensors")}, "no such file"),
    ],
)
def test_what_cannot_be_trained_is_said_first(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(VosError, match=message):
        train(options(tmp_path, **changes))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_held_out_clips_are_of_no_training() -> None:
    recipe = recipe_for("stm", "small")
    batches = held_out("stm", recipe)
    assert len(batches) == 8
    assert all(batch.frames.shape == (1, 5, *recipe.size, 3) for batch in batches)
    assert command.HELD_OUT_SEED > 2**31  # seeds that anybody types are smaller


def test_another_model_can_be_started_from(tmp_path: Path) -> None:
    config = tiny_config("stm", **TINY["stm"])
    stm = build("stm", config, seed=5)
    save(tmp_path / "stm.safetensors", "stm", config, state_of(stm),
         trained=True, description="", licence="MIT")  # fmt: skip
    munet = build("munet", tiny_config("munet", **TINY["stm"]), seed=6)
    before = {name: x.clone() for name, x in munet.state_dict().items()}
    copied = initialise_from(munet, tmp_path / "stm.safetensors")
    source_state, state = stm.state_dict(), munet.state_dict()
    for name in copied:
        source = name.replace("reference_", "memory_")
        if name == "reference_encoder.mask_conv.weight":
            assert torch.equal(state[name], source_state[source][:, :1])
        else:
            assert torch.equal(state[name], source_state[source]), name
    left = {name.split(".")[0] for name in state if name not in copied}
    assert left == {"reduce", "temperature", "motion"}
    assert all(torch.equal(state[name], before[name]) for name in state if name not in copied)


@pytest.mark.parametrize("model", list_models())
def test_weights_of_the_same_model_are_taken_as_they_are(
    model: str, tiny_weights: Callable[[str], Path]
) -> None:
    method, file = build(model, tiny_config(model), seed=8), tiny_weights(model)
    copied = initialise_from(method, file)
    expected, state = state_of(load_file(model, file)[0]), state_of(method)
    assert set(copied) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_a_resnet_starts_every_encoder_of_its_shape(tmp_path: Path) -> None:
    backbone = build("imcnet", tiny_config("imcnet"), seed=5).backbone.state_dict()
    torch.save({**backbone, "fc.weight": torch.zeros(10, 64)}, tmp_path / "resnet.pth")
    stm = build("stm", tiny_config("stm"), seed=6)
    copied = initialise_from(stm, tmp_path / "resnet.pth")
    state = stm.state_dict()
    for encoder in ("query_encoder", "memory_encoder"):
        assert torch.equal(
            state[f"{encoder}.layer3.1.conv2.weight"], backbone["layer3.1.conv2.weight"]
        )
    assert not state["memory_encoder.mask_conv.weight"].any()
    assert {name.split(".")[0] for name in copied} == {"query_encoder", "memory_encoder"}
    wide = build("stm", tiny_config("stm", width=16))
    with pytest.raises(WeightsError, match="no tensor fits this model"):
        initialise_from(wide, tmp_path / "resnet.pth")


def test_clips_then_training_on_them_then_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["vosengine", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
        return "".join(capsys.readouterr())

    cache, run = tmp_path / "cache", tmp_path / "run"
    assert "4 clips" in call(
        "clips", "--out", cache, "--count", 4, "--frames", 3, "--size", "64x96"
    )
    output = call(
        *("train", "--model", "stm", "--data", f"cache:{cache}", "--out", run, "--steps", 2),
        *("--batch", 1, "--frames", 2, "--size", "64x96", "--score-every", 1),
    )
    assert "2 steps" in output
    assert "held-out" in output
    call("plot", run)
    assert (run / "log.png").read_bytes()[:4] == b"\x89PNG"


def test_models_that_find_objects_want_labelled_clips(tmp_path: Path) -> None:
    from vosengine.training.synthetic.cache import write_cache

    write_cache(tmp_path / "cache", 4, 3, (64, 96))
    with pytest.raises(ConfigError, match="drawn with --labelled"):
        train(options(tmp_path / "run", "imcnet", data=f"cache:{tmp_path / 'cache'}"))
