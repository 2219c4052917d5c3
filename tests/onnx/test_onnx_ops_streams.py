"""Exports by other operators than ONNX's own: their labels are torch's, and they say what they
need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import tiny_config
from exported import FOREGROUND, STATIC, Export, answers, both, differing, draw_clip

from vosengine import DNetSource, OnnxSegmenter, Segmenter, list_models
from vosengine.errors import ConfigError, DependencyError
from vosengine.kernels import read_memory
from vosengine.kernels.read_memory.cases import CASES as READINGS
from vosengine.onnx import ExportOptions, export_model, library
from vosengine.onnx.export.custom import Contrib
from vosengine.onnx.export.frames import finish_graph, prepare_graph
from vosengine.onnx.sessions import session_options
from vosengine.types import Geometry, Size
from vosengine.zoo.registry import build
from vosengine.zoo.weights import save, state_of

MOST = 1e-3  # of the labels may differ
CPU = ["CPUExecutionProvider"]
OURS = {f"vosengine::{name}" for name in ("prepare_frame", "finish_masks")}
# What a model's graphs have of ours beside these.
FOUND = {
    "stm": {"read_memory"},
    "munet": {"read_memory", "correlate_frames"},
    "giel": {"read_memory"},
    "dmn_aoa": {"read_memory", "pool_regions", "group_centres"},
    "imcnet": {"read_memory", "deform_conv"},
    "target_aware": {"group_centres"},
}

pytestmark = pytest.mark.skipif(
    not library.LIBRARY.is_file(), reason="the library of operators is not built"
)


def operators_of(folder: Path) -> set[str]:
    manifest = json.loads((folder / "model.json").read_text())
    return {operator for graph in manifest["graphs"].values() for operator in graph["operators"]}


def assert_labels_are_torchs(folder: Path, size: Size | None, **options: Any) -> None:
    clip = draw_clip(size or (96, 130), 2, frames=5)
    segmenter, reference = both(folder, size=size, **options)
    prompts = {0: clip.masks[0]} if segmenter.manifest.needs_mask else {}
    outputs = answers(segmenter, clip.frames, prompts)
    assert differing(outputs, answers(reference, clip.frames, prompts)) < MOST
    assert any(labels.any() for labels in outputs)


@pytest.mark.parametrize("model", list_models())
def test_labels_by_our_operators_are_torchs(model: str, export: Export) -> None:
    """`munet` with dynamic axes; the others at one size, which takes a quarter of the time."""
    fixed = {} if model == "munet" else FOREGROUND if model == "imcnet" else STATIC
    folder = export(model, ops="vosengine", **fixed)
    assert operators_of(folder) == OURS | {f"vosengine::{name}" for name in FOUND[model]}
    manifest = json.loads((folder / "model.json").read_text())
    assert (manifest["ops"], manifest["ops_version"]) == ("vosengine", library.VERSION)
    options: dict[str, Any] = {}
    if model == "dmn_aoa":
        options["proposals"] = DNetSource(device="cpu", embed=False, engine="eager")
    assert_labels_are_torchs(folder, fixed.get("size"), **options)


def test_what_attention_cannot_read_stays_standard_and_is_said(export: Export) -> None:
    folder = export("imcnet", ops="contrib", **FOREGROUND)
    assert operators_of(folder) == {"com.microsoft::MultiHeadAttention"}
    manifest = json.loads((folder / "model.json").read_text())
    assert (manifest["ops"], manifest["ops_version"], manifest["ops_kept"]) == ("contrib", 0, [])
    assert_labels_are_torchs(folder, FOREGROUND["size"])
    folder = export("stm", size=(64, 96), max_objects=2, ops="contrib")
    manifest = json.loads((folder / "model.json").read_text())
    assert operators_of(folder) == set()
    assert manifest["ops_kept"] == [
        "segment: read_memory reads the 30 closest positions of a query, which MultiHeadAttention "
        "does not"
    ]


def test_attention_reads_a_memory_of_every_length(
    export: Export, tiny_weights: Callable[[str], Path]
) -> None:
    """A narrow network that reads all positions, objects of which one comes later."""
    path = tiny_weights("stm")
    folder = export("stm", path, ops="contrib")
    assert operators_of(folder) == {"com.microsoft::MultiHeadAttention"}
    clip = draw_clip((64, 80), 2, frames=5)
    segmenter = OnnxSegmenter(folder, providers=CPU, threads=1)
    reference = Segmenter("stm", weights=path, device="cpu", precision="fp32", engine="eager")
    first = np.where(clip.masks[0] == 1, 1, 0).astype(np.uint8)
    prompts = {0: first, 2: clip.masks[2]}
    labels = [answers(engine, clip.frames, prompts) for engine in (segmenter, reference)]
    assert differing(*labels) < MOST


def attention(arguments: dict[str, Any]) -> torch.Tensor:
    """A call of `read_memory` by MultiHeadAttention, as it is exported."""
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    numbers = {k: v for k, v in arguments.items() if k not in tensors}

    class Reads(torch.nn.Module):
        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            named: dict[str, Any] = dict(zip(tensors, values, strict=True))
            return Contrib([]).read_memory(**named, **numbers)

    program = torch.onnx.export(Reads(), tuple(tensors.values()), dynamo=True, opset_version=20)
    assert program is not None
    model = program.model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU)
    names = [node.name for node in session.get_inputs()]
    feeds = dict(zip(names, (x.contiguous().numpy() for x in tensors.values()), strict=True))
    return torch.from_numpy(session.run(None, feeds)[0])


@pytest.mark.parametrize(
    "name",
    [
        *("odd sizes", "lengths and bias", "many sets, bias", "a query per group"),
        *("pages, bias", "queries of two streams"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_attention_is_the_op(name: str) -> None:
    (case,) = [reading for reading in READINGS if reading.name == name]
    arguments = case.arguments()
    for key in ("memory_key", "memory_value", "bias"):
        if key in arguments:
            arguments[key] = arguments[key].nan_to_num(0)
    output, truth = attention(arguments), read_memory.reference(**arguments)
    if "length" in arguments:  # of nothing the mean is not defined
        output, truth = output[arguments["length"] > 0], truth[arguments["length"] > 0]
    torch.testing.assert_close(output, truth, rtol=1e-4, atol=1e-4)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = session_options(1, library.find_library(OURS))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=CPU)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [None, 33, (40, 96)])
def test_prepare_is_the_standard_one(size: Any, half: bool) -> None:
    image = np.random.default_rng(1).integers(0, 256, (48, 75, 3), dtype=np.uint8)
    geometry = Geometry.fit((48, 75), size=size, multiple=16)
    feeds = {
        "frame": image,
        "resized": np.array(geometry.resized),
        "padding": np.array(geometry.padding),
    }
    output, wanted = (
        session(prepare_graph((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), half, 20, ops)).run(None, feeds)[0]
        for ops in ("vosengine", "standard")
    )
    assert output.dtype == wanted.dtype and output.shape == (1, 3, *geometry.network)
    assert np.abs(output - wanted).max() < (5e-3 if half else 2e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shown", [(), (2,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("alive", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_finish_is_the_standard_one(
    alive: tuple[int, ...], shown: tuple[int, ...], padded: bool
) -> None:
    """Whoever is alive and whatever a prompt shows."""
    geometry = Geometry.fit((48, 75), size=64, multiple=16)
    logits = 6 * torch.randn(3, 16, 28, generator=torch.Generator().manual_seed(2))
    prompt = np.zeros((48, 75), np.uint8)
    for number in shown:
        prompt[5 + 9 * number : 15 + 9 * number, 20:40] = number
    feeds = {
        "logits": logits.numpy(),
        "alive": np.array(alive, bool),
        "prompt": prompt,
        "size": np.array(geometry.resized if padded else geometry.frame),
        "region": np.array(geometry.region(4), dtype=np.float64),
        "padding": np.array(geometry.padding if padded else (0, 0, 0, 0)),
    }
    (labels, masks), (wanted, truth) = (
        session(finish_graph(20, ops)).run(None, feeds) for ops in ("vosengine", "standard")
    )
    np.testing.assert_array_equal(labels, wanted)
    assert masks.shape == truth.shape and np.abs(masks - truth).max() < 1e-5


def test_an_export_refuses_to_run_without_its_library(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export("munet", ops="vosengine")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "lib.so")
    with pytest.raises(DependencyError, match=r"read_memory.*is not there .*--ops standard"):
        OnnxSegmenter(folder)
    out = tmp_path / "out"
    with pytest.raises(DependencyError, match=r"vosengine::finish_masks.*is not there"):
        export_model("munet", ExportOptions(out, ops="vosengine"))
    with pytest.raises(ConfigError, match="ops: wanted standard, contrib, vosengine, given 'fast'"):
        export_model("munet", ExportOptions(out, ops="fast"))
    assert not out.exists()


def test_half_precision_is_converted_around_the_operators(
    export: Export, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A narrow static network; its labels are those of the same graphs in standard operators."""
    path = tmp_path_factory.mktemp("half") / "tiny-munet.safetensors"
    config = tiny_config("munet")
    tensors = state_of(build("munet", config, seed=3))
    save(path, "munet", config, tensors, trained=False, description="-", licence="MIT")
    options: dict[str, Any] = {"size": (64, 96), "max_objects": 2, "precision": "fp16"}
    clip, labels = draw_clip((64, 96), 2, frames=3), []
    for ops in ("vosengine", "standard"):
        segmenter = OnnxSegmenter(
            export("munet", path, ops=ops, **options), providers=CPU, threads=1
        )
        labels.append(answers(segmenter, clip.frames, {0: clip.masks[0]}))
    assert differing(*labels) < 2e-2
