"""`vosengine export`: write a model's graphs and compare them with torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..benchmark import drawn_scene
from ..engine.segmenter import Segmenter
from ..errors import ConfigError, DependencyError, OutputError
from ..types import Size
from ..zoo.registry import entry

FRAMES = 4  # of the stream that both engines are given
OBJECTS = 2
FRAME = 144, 208
MOST_DIFFERENT = {"fp32": 1e-3, "fp16": 2e-2}  # share of the labels, of trained weights


@dataclass(frozen=True)
class Export:
    """Options of `export`: the fields of ExportOptions, and the target folder.

    out                the folder, or
    server_repository  the folder of a repository for NVIDIA Triton Inference Server
    """

    model: str
    out: Path | None = None
    server_repository: Path | None = None
    weights: str | None = None
    size: Size | None = None
    max_objects: int | None = None
    memory_frames: int | None = None
    precision: str = "fp32"
    opset: int = 20
    ops: str = "standard"


@dataclass(frozen=True)
class Written:
    """What was written: a row per graph for the table, how the stream compares, and what was left
    in standard operators though others were asked for."""

    folder: Path
    graphs: list[tuple[str, str, str, str]]
    differs: float
    frames: int
    caption: str
    trained: bool
    kept: tuple[str, ...] = ()


def export(wanted: Export, *, report: Callable[[str], None] = lambda line: None) -> Written:
    """Write the graphs, compare each with torch, then a stream of drawn frames.

    Raises  ConfigError, WeightsError before anything is written; OutputError where torch says
            something else; DependencyError without onnx, onnxscript and onnxruntime, or the library
            of the operators that are asked for.
    """
    try:
        from ..onnx.export import ExportOptions, export_model, family_of
        from ..onnx.server import check_fixed, write_repository
    except ImportError as error:
        raise DependencyError(
            f"export: wants onnx, onnxscript and onnxruntime ({error}); "
            'pip install "vosengine[export]"'
        ) from error
    entry(wanted.model)
    if wanted.server_repository is not None:
        if wanted.ops == "vosengine":
            raise ConfigError(
                "--server-repository: wanted --ops standard or contrib, given vosengine; the "
                "server has no library of these operators"
            )
        check_fixed(wanted.model, family_of(wanted.model).POLICY, dynamic=wanted.size is None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = wanted.out or Path(scratch)
        options = ExportOptions(
            folder,
            weights=wanted.weights,
            size=wanted.size,
            max_objects=wanted.max_objects,
            memory_frames=wanted.memory_frames,
            precision=wanted.precision,
            opset=wanted.opset,
            ops=wanted.ops,
        )
        manifest, compared = export_model(wanted.model, options, report=report)
        report("a stream beside torch")
        differs = compare_streams(wanted, folder)
        if manifest.weights["trained"] and differs > MOST_DIFFERENT[wanted.precision]:
            raise OutputError(
                f"{folder}: labels differ from torch in {100 * differs:.2f} % of the pixels"
            )
        if wanted.server_repository is not None:
            write_repository(folder, wanted.server_repository)
        worst = {each.graph: each for each in compared}
        rows = []
        for name, graph in manifest.graphs.items():
            size = (folder / graph.file).stat().st_size / 2**20
            each = worst.get(name)
            found = ("", "") if each is None else (f"{each.worst:.1e}", f"{each.scale:.3g}")
            rows.append((graph.file, f"{size:.1f}", *found))
    target = wanted.server_repository or folder
    weights = manifest.weights
    return Written(
        target, rows, differs, FRAMES, weights["caption"], weights["trained"], manifest.ops_kept
    )


def compare_streams(wanted: Export, folder: Path) -> float:
    """The share of labels in which OnnxSegmenter and an eager Segmenter differ, over drawn frames
    with two objects, the second of which comes later."""
    from ..onnx import OnnxSegmenter

    given = OnnxSegmenter(folder, providers=["CPUExecutionProvider"])
    truth = Segmenter(
        wanted.model,
        weights=wanted.weights,
        device="cpu",
        precision="fp32",
        engine="eager",
        size=wanted.size,
    )
    scene, many = drawn_scene(FRAME), given.max_objects >= OBJECTS
    labels: list[list[np.ndarray]] = [[], []]
    for engine, answers in zip((given, truth), labels, strict=True):
        for index in range(FRAMES):
            prompt = None
            if given.manifest.needs_mask and index < (2 if many else 1):
                prompt = scene.prompt(1 + index)
            result = engine.step(scene.frame(index), prompt)  # type: ignore[attr-defined]
            answers += [] if result is None else [result.numpy()]
        answers += [result.numpy() for result in engine.flush()]  # type: ignore[attr-defined]
    return float(np.mean(np.stack(labels[0]) != np.stack(labels[1])))
