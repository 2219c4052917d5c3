"""GIEL's graphs: store, places and objects of a stream, compared with torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from exported import Export, answers, both, differing, draw_clip
from torch import Tensor

from vosengine import OnnxSegmenter, Segmenter
from vosengine.config import GIELConfig
from vosengine.models.giel.network import GIEL
from vosengine.onnx.export.support import verbs
from vosengine.onnx.export.verb import Plan, Verb
from vosengine.onnx.support import SupportPolicy
from vosengine.training.synthetic import Clip
from vosengine.zoo.registry import build
from vosengine.zoo.weights import load, save, state_of

SIZE = 80, 112
MOST = 1e-3  # of the labels may differ


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights at the frame's own size, with few places and a small store."""
    method, _ = load("giel", "demo")
    assert isinstance(method.config, GIELConfig)
    config = replace(method.config, size=None, support=3, stored_frames=6)
    path = tmp_path_factory.mktemp("giel") / "small.safetensors"
    save(path, "giel", config, state_of(method), trained=True, description="-", licence="MIT")
    return path


@pytest.fixture(scope="module")
def folder(export: Export, weights: Path) -> Path:
    return export("giel", weights, size=SIZE, max_objects=3)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Fourteen frames with three objects."""
    return draw_clip(SIZE, 3, 14)


def streams(folder: Path, weights: Path) -> tuple[OnnxSegmenter, Segmenter]:
    segmenter = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
    reference = Segmenter(
        "giel",
        weights=str(weights),
        device="cpu",
        precision="fp32",
        engine="eager",
        max_objects=3,
    )
    return segmenter, reference


def only(mask: np.ndarray, *ids: int) -> np.ndarray:
    return np.where(np.isin(mask, ids), mask, 0).astype(np.uint8)


def test_objects_come_and_go_as_in_torch(folder: Path, weights: Path, clip: Clip) -> None:
    """Two objects, a third in frame 4, the second removed after frame 8, back in frame 11; the
    store is full from frame 6 on."""
    prompts = {0: only(clip.masks[0], 1, 2), 4: only(clip.masks[4], 3), 11: only(clip.masks[11], 2)}
    results: list[list[np.ndarray]] = []
    segmenter, reference = streams(folder, weights)
    for engine in (segmenter, reference):
        labels = answers(engine, clip.frames[:9], prompts)
        engine.remove(2)
        for index in range(9, len(clip.frames)):
            result = engine.step(clip.frames[index], prompts.get(index))
            assert result is not None
            labels.append(result.numpy())
        results.append(labels)
    assert {tuple(np.unique(labels)) for labels in results[1]} >= {
        (0, 1, 2),
        (0, 1, 2, 3),
        (0, 1, 3),
    }
    assert differing(*results) <= MOST
    assert isinstance(segmenter.policy, SupportPolicy)
    assert segmenter.policy.plan.every > 1
    assert set(segmenter.policy.store) == set(segmenter.policy.plan.rows)
    assert len(segmenter.policy.store) <= 6


def test_free_axes(export: Export) -> None:
    """At the network's own size; more frames than places, objects that come and go."""
    clip = draw_clip((96, 130), 3, 9)
    prompts = {0: only(clip.masks[0], 1, 2), 3: only(clip.masks[3], 3)}
    segmenter, reference = both(export("giel"))
    results = []
    for engine in (segmenter, reference):
        labels = answers(engine, clip.frames[:7], prompts)
        engine.remove(1)  # type: ignore[attr-defined]
        results.append(labels + answers(engine, clip.frames[7:], {}))
    assert differing(*results) <= MOST


def test_one_object_and_probabilities(folder: Path, weights: Path, clip: Clip) -> None:
    segmenter, reference = streams(folder, weights)
    for index, frame in enumerate(clip.frames[:6]):
        prompt = only(clip.masks[0], 1) if index == 0 else None
        one, other = segmenter.step(frame, prompt), reference.step(frame, prompt)
        assert one is not None
        assert other is not None
        assert np.mean(one.numpy() != other.numpy()) <= MOST
        difference = np.abs(one.probabilities - other.probabilities.numpy())
        assert difference.mean() < 1e-3


def test_after_the_last_object_the_next_mask_begins_anew(folder: Path, clip: Clip) -> None:
    used, fresh = (
        OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1) for _ in range(2)
    )
    answers(used, clip.frames[:3], {0: only(clip.masks[0], 1, 2)})
    used.remove(1)
    used.remove(2)
    nothing = used.step(clip.frames[3])
    assert nothing is not None
    assert nothing.ids == ()
    again = {0: only(clip.masks[4], 3)}
    labels = [answers(engine, clip.frames[4:8], again) for engine in (used, fresh)]
    assert differing(*labels) == 0


def test_places_that_are_not_in_use_are_not_read(weights: Path) -> None:
    """The contents of an unused place have no effect; those of a used one have."""
    segment = verb_of(load("giel", str(weights))[0], "segment")
    inputs = {port.name: port.example for port in segment.inputs}
    assert inputs["valid"].tolist() == [True, True, False]
    spoilt = {
        name: 100 * torch.randn_like(x) if name.endswith("_2") else x for name, x in inputs.items()
    }
    changed = {
        name: 100 * torch.randn_like(x) if name.endswith("_1") else x for name, x in inputs.items()
    }
    logits = [outputs(segment, values)[0] for values in (inputs, spoilt, changed)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert (logits[0] - logits[2]).abs().max() > 1e-2


OPTIONS: list[dict[str, Any]] = [
    {"temporal": "premul", "variant": "fast"},
    {"temporal": "postmul", "heads": "separate", "label_output": "sigmoid", "product": False},
    {"temporal": "none", "decoders": "shared", "scaled": False, "top_k": 7},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=lambda c: "-".join(map(str, c)))
def test_places_do_not_count_whatever_the_options(changes: dict[str, Any]) -> None:
    """The same result as the model with only two places."""
    method = build("giel", tiny_config("giel", support=3, **changes))
    assert isinstance(method, GIEL)
    segment = verb_of(method, "segment")
    inputs = {port.name: port.example for port in segment.inputs}
    inputs |= {name: 100 * torch.randn_like(inputs[name]) for name in inputs if name.endswith("_2")}
    method.config = replace(method.config, support=3)
    fewer = {name: x for name, x in inputs.items() if not name.endswith("_2")}
    fewer["valid"] = torch.ones(2, dtype=torch.bool)
    segment_two = verb_of(method, "segment")
    module: Any = segment_two.module
    module.network.config = replace(method.config)
    object.__setattr__(module.network.config, "support", 2)  # what no configuration may say
    for one, other in zip(outputs(segment, inputs), outputs(segment_two, fewer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def verb_of(method: Any, name: str) -> Verb:
    torch.manual_seed(0)
    return next(verb for verb in verbs(method, Plan(16, (3, 5), 2, 4)) if verb.name == name)


@torch.no_grad()
def outputs(verb: Verb, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    tensors: tuple[Tensor, ...] = verb.module(*inputs.values())
    return tensors
