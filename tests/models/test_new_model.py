"""A new model is one file and one entry of the registry: this file's, which the commands, the
training, the benchmark and the tests of every model then know."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import conftest
import numpy as np
import pytest
import test_every_model as battery
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from vosengine.cli import app as cli
from vosengine.config import MemoryConfig
from vosengine.config.checks import InputConfig, check_positive
from vosengine.errors import ConfigError
from vosengine.memory import PagePools
from vosengine.models.backbone import initialise
from vosengine.models.encoder import make_encoder
from vosengine.models.method import Method, State
from vosengine.proposals import Proposals
from vosengine.training.synthetic import Clip
from vosengine.types import Geometry, Masks, Scores
from vosengine.video import read_labels, write_labels
from vosengine.zoo.registry import MODELS, Entry, list_models

# The model.


@dataclass(frozen=True)
class ToyConfig(InputConfig):
    """backbone, width, norm, size  as in STMConfig; channels  of what an object is known by."""

    backbone: str = "resnet18"
    width: int = 8
    channels: int = 16
    norm: str = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "channels")


class ToyFeatures(NamedTuple):
    """The toy model's features of a frame."""

    cells: torch.Tensor  # [B, C, h, w], each cell of length 1


class ToyState(State):
    """The mean cell of every object in the newest frame that showed it: [room, C]."""

    def __init__(self, means: torch.Tensor) -> None:
        self.means = means

    @property
    def nbytes(self) -> int:
        return self.means.nbytes

    def forget(self, slot: int) -> None:
        self.object_count -= 1
        self.means[slot] = self.means[self.object_count].clone()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"means": self.means[: self.object_count]}

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.means[:object_count] = tensors["means"]
        self.object_count = object_count


class Toy(Method[ToyFeatures, ToyState]):
    """An object is where cells are similar to its mean in the previous frame."""

    features = ToyFeatures

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config  # type: ignore[assignment]
        self.size = config.size
        self.encoder = make_encoder(config.backbone, config.width, norm=config.norm)
        self.project = nn.Conv2d(self.encoder.channels[2], config.channels, 1)
        self.scale = nn.Parameter(torch.tensor([8.0, -4.0]))
        initialise(self)

    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> ToyState:
        return ToyState(self.project.weight.new_zeros(max_objects, self.config.channels))

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> ToyFeatures:
        return ToyFeatures(functional.normalize(self.project(self.encoder(frames).r4), dim=1))

    def segment(self, seen: Sequence[ToyFeatures], state: ToyState) -> Scores:
        means = functional.normalize(state.means[: state.object_count], dim=1)
        alike = torch.einsum("oc,chw->ohw", means, seen[0].cells[0])
        return Scores(self.scale[0] * alike + self.scale[1], stride=16)

    def observe(self, seen: Sequence[ToyFeatures], masks: Masks, state: ToyState) -> Any:
        cells = seen[0].cells[0]
        own = masks.probabilities[None, 1:].to(cells.dtype)
        share = functional.adaptive_avg_pool2d(own, tuple(cells.shape[1:]))[0]
        total = share.sum(dim=(1, 2))[:, None]
        mean = torch.einsum("ohw,chw->oc", share, cells) / total.clamp(min=1e-6)
        return torch.where(total > 0, mean, state.means[: len(share)])

    def commit(self, observed: torch.Tensor, masks: Masks, state: ToyState) -> None:
        state.means[: len(observed)] = observed
        state.object_count = len(observed)


TOY = Entry(Toy, ToyConfig, "cells like those of the frame before", small=ToyConfig())

# What is seen of it.


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(MODELS, "toy", TOY)
    monkeypatch.setitem(conftest.NARROW, "toy", {})
    yield
    monkeypatch.undo()
    assert "toy" not in list_models()


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in arguments])


def test_it_is_listed_with_its_random_weights() -> None:
    assert list_models()[-1] == "toy"
    output = call("models").output
    assert "toy" in output and "cells like" in output


def test_it_is_trained_and_run(clip: Clip, tmp_path: Path) -> None:
    frames, out = tmp_path / "frames", tmp_path / "masks"
    frames.mkdir()
    for index, frame in enumerate(clip.frames[:4]):
        Image.fromarray(frame).save(frames / f"{index}.png")
    write_labels(tmp_path / "first.png", clip.masks[0])
    trained = call(
        *("train", "--model", "toy", "--config", "small", "--out", tmp_path / "run"),
        *("--steps", 2, "--batch", 1, "--frames", 3, "--size", "64x96", "--score-every", 2),
        *("--device", "cpu"),
    )
    assert trained.exit_code == 0, (trained.output, trained.exception)
    ran = call(
        *("run", "--model", "toy", "--weights", tmp_path / "run" / "weights.safetensors"),
        *("--mask", tmp_path / "first.png", "--out", out, "--device", "cpu", frames),
    )
    assert ran.exit_code == 0, (ran.output, ran.exception)
    masks = [read_labels(path) for path in sorted(out.glob("*.png"))]
    assert len(masks) == 4
    np.testing.assert_array_equal(masks[0], clip.masks[0])
    assert conftest.object_ids(masks[3]) <= {1, 2}


def test_it_is_timed(tmp_path: Path) -> None:
    outcome = call(
        *("bench", "--model", "toy", "--sizes", "64x96", "--objects", 1, "--frames", 4),
        *("--warm-up", 0, "--steps", 2, "--device", "cpu", "--no-compiled"),
        *("--output-json", tmp_path / "times.json"),
    )
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    (measured,) = json.loads((tmp_path / "times.json").read_text())["models"]
    (point,) = measured["points"]
    cells = {cell["variant"]: cell for cell in point["cells"]}
    assert cells["published fp32"]["fault"] == "has no decoder per object"
    for way in ("eager fp32", "ours"):
        assert cells[way]["fault"] is None and cells[way]["p50_ms"] > 0
    assert cells["ours"]["iou"] > 0.9
    assert {"encode", "segment", "remember"} <= set(cells["ours"]["stages"])


def test_its_cost_is_told() -> None:
    outcome = call("info", "toy", "--size", "64x96")
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)


def test_it_has_no_onnx_export_and_says_so_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    for target in ("--out", "--server-repository"):
        outcome = call("export", "toy", target, tmp_path / "out")
        assert isinstance(outcome.exception, ConfigError)
        assert str(outcome.exception).startswith(
            "export: toy has no ONNX export; wanted one of stm"
        )
        assert not (tmp_path / "out").exists()


def test_what_it_has_not_is_said(tmp_path: Path) -> None:
    for arguments, message in (
        (("--config", "lite"), "config: wanted small or paper, given 'lite'"),
        (("--parts", "dnet"), "parts: toy is trained as a whole; omit them"),
    ):
        outcome = call("train", "--model", "toy", "--out", tmp_path / "out", *arguments)
        assert isinstance(outcome.exception, ConfigError)
        assert message in str(outcome.exception)


ITERATED = {"any_model": "toy", "prompted_model": "toy", "small": None, "tmp_path": None}
TESTS = {
    name: test
    for name, test in vars(battery).items()
    if name.startswith("test_") and set(inspect.signature(test).parameters) <= set(ITERATED)
}


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_every_model_hold(name: str, small: Clip, tmp_path: Path) -> None:
    arguments = {**ITERATED, "small": small, "tmp_path": tmp_path}
    wanted = inspect.signature(TESTS[name]).parameters
    assert wanted
    TESTS[name](**{key: arguments[key] for key in wanted})
