"""Graphs and streams: onnxruntime agrees with torch."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import object_ids
from exported import Export, answers, both, differing, draw_clip

from vosengine import MemoryConfig
from vosengine.errors import InputError
from vosengine.kernels import correlate_frames, finish_masks, prepare_frame, read_memory
from vosengine.kernels.cases import Case
from vosengine.kernels.correlate_frames.cases import CASES as CORRELATIONS
from vosengine.kernels.read_memory.cases import CASES as READINGS
from vosengine.onnx.export import matching, ops
from vosengine.onnx.export.frames import finish_graph, prepare_graph
from vosengine.onnx.export.verb import Plan, beside_torch
from vosengine.types import Geometry
from vosengine.zoo.weights import load

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = ["CPUExecutionProvider"]
MOST = 1e-3  # of the labels may differ


@pytest.fixture(scope="session")
def munet(export: Export) -> Path:
    return export("munet")


@pytest.fixture(scope="module")
def method() -> Any:
    """The network of an export."""
    return load("munet", "demo")[0]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU)


@pytest.mark.parametrize("opset", [20, 21])
@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ((48, 75), None),
        ((48, 75), 32),
        ((160, 90), 33),
        ((37, 53), 64),
        ((48, 75), (40, 96)),
        ((75, 48), (32, 32)),
    ],
)
def test_prepare_is_the_op(frame: tuple[int, int], size: Any, opset: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*frame, 3), dtype=np.uint8)
    geometry = Geometry.fit(frame, size=size, multiple=16)
    feeds = {
        "frame": image,
        "resized": np.array(geometry.resized),
        "padding": np.array(geometry.padding),
    }
    (output,) = session(prepare_graph(MEAN, STD, False, opset)).run(None, feeds)
    truth = prepare_frame(
        torch.from_numpy(image), size=geometry.resized, padding=geometry.padding, mean=MEAN, std=STD
    )
    assert output.shape == (1, 3, *geometry.network)
    assert np.abs(output[0] - truth.numpy()).max() < 2e-4  # a hundredth of one of 255 steps


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("size", [(48, 75), (33, 51)])
def test_finish_is_the_op(objects: int, size: tuple[int, int]) -> None:
    geometry = Geometry.fit((48, 75), size=None, multiple=16)
    logits = 6 * torch.randn(objects, 12, 20, generator=torch.Generator().manual_seed(2))
    feeds = feeds_of(logits, np.ones(objects, dtype=bool), geometry, size)
    labels, masks = session(finish_graph(20)).run(None, feeds)
    ids = torch.arange(1, 1 + objects, dtype=torch.uint8)
    truth, probabilities = finish_masks(
        logits, ids, size=size, region=geometry.region(4), probabilities=True
    )
    assert probabilities is not None
    np.testing.assert_array_equal(labels, truth.numpy())
    assert np.abs(masks - probabilities.numpy()).max() < 1e-5


def feeds_of(
    logits: torch.Tensor, alive: np.ndarray, geometry: Geometry, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    return {
        "logits": logits.numpy(),
        "alive": alive,
        "prompt": np.zeros(geometry.frame, dtype=np.uint8),
        "size": np.array(size),
        "region": np.array(geometry.region(4), dtype=np.float64),
        "padding": np.zeros(4, dtype=np.int64),
    }


def test_rows_that_are_not_alive_count_for_nothing() -> None:
    geometry = Geometry.fit((48, 75), size=None, multiple=16)
    logits = 6 * torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(2))
    run = session(finish_graph(20))
    labels, masks = run.run(
        None, feeds_of(logits, np.array([True, False, True]), geometry, (48, 75))
    )
    alone, truth = run.run(None, feeds_of(logits[::2], np.ones(2, bool), geometry, (48, 75)))
    np.testing.assert_array_equal(labels, np.array([0, 1, 3], np.uint8)[alone])
    np.testing.assert_array_equal(masks[[0, 1, 3]], truth)
    assert not masks[2].any()


def test_a_prompt_lies_over_the_rest() -> None:
    """Prompted objects have probability 1 in their mask and 0 elsewhere; others share the rest."""
    geometry = Geometry.fit((48, 75), size=None, multiple=16)
    logits = 6 * torch.randn(2, 12, 20, generator=torch.Generator().manual_seed(2))
    feeds = feeds_of(logits, np.ones(2, bool), geometry, (48, 75))
    feeds["prompt"][10:20, 30:40] = 2
    feeds["padding"] = np.array(geometry.padding)
    labels, masks = session(finish_graph(20)).run(None, feeds)
    there = feeds["prompt"] > 0
    assert (labels[there] == 2).all() and not (labels[~there] == 2).any()
    left, right, top, bottom = geometry.padding
    height, width = masks.shape[1:]
    inner = masks[:, top : height - bottom, left : width - right]
    assert (inner[2][there] == 1).all() and not inner[[0, 1]][:, there].any()
    one = feeds_of(logits[:1], np.ones(1, bool), geometry, (48, 75))
    _, alone = session(finish_graph(20)).run(None, one)
    np.testing.assert_array_equal(inner[1][~there], alone[1][~there])


def _quick(cases: tuple[Case, ...]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases if not case.bench]


@pytest.mark.parametrize("case", _quick(READINGS))
def test_read_memory_stands_in(case: Case) -> None:
    arguments = case.arguments()
    length = arguments.get("length")
    if length is not None:  # only what was written is read, and that is finite
        arguments["memory_key"] = arguments["memory_key"].nan_to_num(0)
        arguments["memory_value"] = arguments["memory_value"].nan_to_num(0)
    output, truth = ops.read_memory(**arguments), read_memory.reference(**arguments)
    if length is not None:
        output, truth = output[length > 0], truth[length > 0]
    torch.testing.assert_close(output, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", _quick(CORRELATIONS))
def test_correlate_frames_stands_in(case: Case) -> None:
    arguments = case.arguments()
    output, truth = ops.correlate_frames(**arguments), correlate_frames.reference(**arguments)
    torch.testing.assert_close(output, truth, rtol=1e-3, atol=1e-3)


def test_every_graph_is_valid_and_plain(munet: Path) -> None:
    for path in munet.glob("*.onnx"):
        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
        assert {opset.domain for opset in model.opset_import} == {""}
        assert [opset.version for opset in model.opset_import] == [20]
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions


@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize("objects", [1, 2, 4])
@pytest.mark.parametrize("cells", [(4, 6), (9, 5), (13, 16)])
def test_dynamic_axes(
    munet: Path, method: Any, cells: tuple[int, int], objects: int, frames: int
) -> None:
    """Each graph beside torch at every size, number of objects and length of the memory. Of two
    positions that score alike rounding decides which is the last of the closest 30 that are read:
    a few numbers of `segment` may deviate by what that position says."""
    for verb in matching.verbs(method, Plan(16, cells, objects, frames)):
        with ops.exported_ops():
            examples = [port.example for port in verb.inputs]
            pairs = beside_torch(munet / f"{verb.name}.onnx", verb, examples)
        scale = max(1.0, *(float(np.abs(wanted).max()) for _, wanted in pairs))
        apart = np.concatenate([np.abs(output - wanted).ravel() for output, wanted in pairs])
        assert apart.max() < 5e-4 * scale, verb.name
        share = 1e-3 if verb.name == "segment" else 0
        assert (apart > 1e-4 * scale).mean() <= share, verb.name


@pytest.mark.parametrize("objects", [1, 2, 3])
@pytest.mark.parametrize("size", [(96, 130), (130, 96), (200, 333)])
def test_the_stream_is_torchs(munet: Path, size: tuple[int, int], objects: int) -> None:
    clip = draw_clip(size, objects)
    segmenter, reference = both(munet)
    labels = answers(segmenter, clip.frames, {0: clip.masks[0]})
    assert differing(labels, answers(reference, clip.frames, {0: clip.masks[0]})) < MOST
    assert object_ids(labels[-1])


def test_objects_come_and_go(munet: Path) -> None:
    """A new object, a correction, a removal, and an id that is used again."""
    clip = draw_clip((96, 130), 3, frames=9)
    prompted = ((0, 1), (2, 3), (4, 1))
    only = [np.where(clip.masks[i] == k, k, 0).astype(np.uint8) for i, k in prompted]
    again = np.where(clip.masks[7] == 1, 9, 0).astype(np.uint8)
    segmenter, reference = both(munet)
    labels: list[list[np.ndarray]] = [[], []]
    for engine, outputs in zip((segmenter, reference), labels, strict=True):
        for index, frame in enumerate(clip.frames):
            prompt = {0: only[0], 2: only[1], 4: only[2], 7: again}.get(index)
            if index == 6:
                engine.remove(1)  # type: ignore[attr-defined]
            result = engine.step(frame, prompt)  # type: ignore[attr-defined]
            assert result is not None
            outputs.append(result.numpy())
            assert engine.ids == result.ids  # type: ignore[attr-defined]
    assert differing(*labels) < MOST
    assert segmenter.ids == (3, 9)
    with pytest.raises(InputError, match="remove: no object 1; alive: 3, 9"):
        segmenter.remove(1)


def test_a_mask_of_zeros_says_nothing(munet: Path) -> None:
    clip = draw_clip((96, 130), 2)
    prompted, calm = both(munet)[0], both(munet)[0]
    first, zeros = {0: clip.masks[0]}, np.zeros((96, 130), np.uint8)
    labels = answers(prompted, clip.frames, {**first, 1: zeros, 3: zeros > 0, 4: zeros})
    assert differing(labels, answers(calm, clip.frames, first)) == 0


def test_several_objects_go_at_once_or_not_at_all(munet: Path) -> None:
    clip = draw_clip((96, 130), 3, frames=6)
    together, singly = both(munet)[0], both(munet)[0]
    for engine in (together, singly):
        answers(engine, clip.frames[:3], {0: clip.masks[0]})
    for bad in ([1, 99], (2, 1, 0), [3, None]):
        with pytest.raises(InputError, match=r"^remove: "):
            together.remove(bad)
    assert together.ids == (1, 2, 3)
    together.remove([1, 3])
    singly.remove(1)
    singly.remove(3)
    assert together.ids == singly.ids == (2,)
    rest = [answers(engine, clip.frames[3:], {}) for engine in (together, singly)]
    assert differing(*rest) == 0


def test_probabilities_are_torchs(munet: Path) -> None:
    clip = draw_clip((96, 130), 2)
    mask = np.where(clip.masks[0] == 1, 40, np.where(clip.masks[0] == 2, 7, 0))
    segmenter, reference = both(munet)
    for index, frame in enumerate(clip.frames[:3]):
        one, other = (e.step(frame, None if index else mask) for e in (segmenter, reference))  # type: ignore[attr-defined]
    assert one.ids == other.ids == (7, 40)
    assert np.abs(one.probabilities - other.probabilities.numpy()).max() < 1e-3
    assert one.numpy() is one.labels and one.frame_index == 2
    for copied in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert (copied.ids, copied.frame_index) == (one.ids, one.frame_index)
        assert np.array_equal(copied.labels, one.labels)
        assert np.array_equal(copied.probabilities, one.probabilities)


def test_a_stream_begins_anew_after_reset(munet: Path) -> None:
    clip, other = draw_clip((96, 130), 2), draw_clip((130, 96), 1)
    segmenter, _ = both(munet)
    first = answers(segmenter, clip.frames, {0: clip.masks[0]})
    segmenter.reset()
    answers(segmenter, other.frames, {0: other.masks[0]})
    segmenter.reset()
    assert differing(answers(segmenter, clip.frames, {0: clip.masks[0]}), first) == 0


def test_nothing_is_left_of_the_objects(munet: Path) -> None:
    clip = draw_clip((96, 130), 1)
    segmenter, reference = both(munet)
    for engine in (segmenter, reference):
        engine.step(clip.frames[0], clip.masks[0])  # type: ignore[attr-defined]
        engine.remove(int(clip.masks[0].max()))  # type: ignore[attr-defined]
        result = engine.step(clip.frames[1])  # type: ignore[attr-defined]
        assert result is not None and result.ids == () and not result.numpy().any()
        assert np.asarray(result.probabilities).shape == (1, 96, 130)
    again = [e.step(clip.frames[2], clip.masks[2]).numpy() for e in (segmenter, reference)]  # type: ignore[attr-defined]
    later = [e.step(clip.frames[3]).numpy() for e in (segmenter, reference)]  # type: ignore[attr-defined]
    assert differing(*([x] for x in again)) == 0 and differing(*([x] for x in later)) < MOST


def test_the_memory_holds_what_is_in_use(munet: Path) -> None:
    """Frames 0 and 5 are kept permanently, besides the previous one; rows are objects."""
    clip = draw_clip((64, 80), 2, frames=8)
    segmenter, _ = both(munet)
    answers(segmenter, clip.frames, {0: clip.masks[0]})
    assert segmenter.policy.state["state.keys"].shape()[:2] == [2, 3]
    segmenter.remove(1)
    assert segmenter.policy.state["state.keys"].shape()[:2] == [1, 3]


@pytest.fixture(scope="session")
def fixed(export: Export) -> Path:
    return export("stm", size=(64, 96), max_objects=3, memory_frames=3)


def test_static_graphs_have_no_free_axis(fixed: Path) -> None:
    manifest = json.loads((fixed / "model.json").read_text())
    assert manifest["settings"]["frames"] == 3
    for name, graph in manifest["graphs"].items():
        if name not in ("prepare", "finish"):
            for port in (*graph["inputs"], *graph["outputs"]):
                assert all(isinstance(axis, int) for axis in port["shape"]), (name, port)


@pytest.mark.parametrize("objects", [1, 3])
def test_static_graphs_stretch_any_frame(fixed: Path, objects: int) -> None:
    """Fewer objects than rows, and more frames than the memory holds."""
    clip = draw_clip((100, 120), objects, frames=20)
    segmenter, reference = both(fixed, size=(64, 96), memory=MemoryConfig("every-5", max_frames=3))
    labels = answers(segmenter, clip.frames, {0: clip.masks[0]})
    assert differing(labels, answers(reference, clip.frames, {0: clip.masks[0]})) < MOST


def test_static_objects_come_and_go(fixed: Path) -> None:
    clip = draw_clip((64, 96), 3, frames=6)
    segmenter, reference = both(fixed, size=(64, 96))
    labels: list[list[np.ndarray]] = [[], []]
    two = np.where(clip.masks[0] == 3, 0, clip.masks[0])
    three = np.where(clip.masks[2] == 3, 3, 0)
    for engine, outputs in zip((segmenter, reference), labels, strict=True):
        for index, frame in enumerate(clip.frames):
            if index == 4:
                engine.remove(1)  # type: ignore[attr-defined]
            result = engine.step(frame, {0: two, 2: three}.get(index))  # type: ignore[attr-defined]
            assert result is not None
            outputs.append(result.numpy())
    assert differing(*labels) < MOST
    with pytest.raises(InputError, match=r"5 objects .* more than max_objects = 3"):
        segmenter.step(clip.frames[0], np.arange(64 * 96, dtype=np.int64).reshape(64, 96) % 3 + 5)
