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

FRAMES = 4  # length of the stream that is compared
OBJECTS = 2
FRAME = 144, 208
# Largest share of labels that may differ from torch, for trained weights.
MAX_DIFFERENCE = {"fp32": 1e-3, "fp16": 2e-2}


@dataclass(frozen=True)
class Export:
    """Options of `export`: the fields of ExportOptions, and the target folder.

    out                folder for the graphs; or
    server_repository  folder for a model repository of NVIDIA Triton Inference Server
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
    """What was written.

    graphs   one row of the table per graph: file, MiB, largest difference from torch, largest value
    differs  share of labels in which the stream differs from torch, 0..1
    frames   number of frames of that stream
    kept     parts that stayed in standard operators although `ops` names others
    """

    folder: Path
    graphs: list[tuple[str, str, str, str]]
    differs: float
    frames: int
    caption: str
    trained: bool
    kept: tuple[str, ...] = ()


def export(wanted: Export, *, report: Callable[[str], None] = lambda line: None) -> Written:
    """Write the graphs; compare each with torch, then a stream of drawn frames.

    Raises  ConfigError, WeightsError before anything is written; OutputError if results differ from
            torch; DependencyError if onnx, onnxscript, onnxruntime or the library of the requested
            operators is missing.
    """
    try:
        from ..onnx.export import ExportOptions, export_model, family_of
        from ..onnx.server import check_fixed, write_repository
    except ImportError as error:
        raise DependencyError(
            f"export: needs onnx, onnxscript and onnxruntime ({error}); "
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
        report("a stream compared with torch")
        differs = compare_streams(wanted, folder)
        if manifest.weights["trained"] and differs > MAX_DIFFERENCE[wanted.precision]:
            raise OutputError(
                f"{folder}: labels differ from torch in {100 * differs:.2f} % of the pixels, "
                f"wanted at most {100 * MAX_DIFFERENCE[wanted.precision]:g} %; do not use it"
            )
        if wanted.server_repository is not None:
            write_repository(folder, wanted.server_repository)
        by_graph = {comparison.graph: comparison for comparison in compared}
        rows = []
        for name, graph in manifest.graphs.items():
            size = (folder / graph.file).stat().st_size / 2**20
            result = by_graph.get(name)
            cells = ("", "") if result is None else (f"{result.worst:.1e}", f"{result.scale:.3g}")
            rows.append((graph.file, f"{size:.1f}", *cells))
    target = wanted.server_repository or folder
    weights = manifest.weights
    return Written(
        target, rows, differs, FRAMES, weights["caption"], weights["trained"], manifest.ops_kept
    )


def compare_streams(wanted: Export, folder: Path) -> float:
    """The share of labels, 0..1, in which OnnxSegmenter and an eager Segmenter differ.

    Both get drawn frames with two objects; the second object is prompted one frame later.
    """
    from ..onnx import OnnxSegmenter

    exported = OnnxSegmenter(folder, providers=["CPUExecutionProvider"])
    reference = Segmenter(
        wanted.model,
        weights=wanted.weights,
        device="cpu",
        precision="fp32",
        engine="eager",
        size=wanted.size,
    )
    scene, many = drawn_scene(FRAME), exported.max_objects >= OBJECTS
    labels: list[list[np.ndarray]] = [[], []]
    for engine, answers in zip((exported, reference), labels, strict=True):
        for index in range(FRAMES):
            prompt = None
            if exported.manifest.needs_mask and index < (2 if many else 1):
                prompt = scene.prompt(1 + index)
            result = engine.step(scene.frame(index), prompt)  # type: ignore[attr-defined]
            answers += [] if result is None else [result.numpy()]
        answers += [result.numpy() for result in engine.flush()]  # type: ignore[attr-defined]
    return float(np.mean(np.stack(labels[0]) != np.stack(labels[1])))
