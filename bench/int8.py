"""Exports in int8 beside the same export in float32: mean J on real clips, and time of a step.

    python bench/int8.py --data DAVIS [stm munet] [--weights demo] [--variants "remember;encode"]
        [--frames 15] [--steps 15] [--exports FOLDER] [--folder bench/results]

Every model is exported with `--ops vosengine`, so that memory reads do not hide the convolutions.
onnxruntime quantises graphs of it (QDQ, int8 weights per channel), with the smallest and largest
values of six frames each of the clips CALIBRATED; these frames are not scored. J is the mean over
clips in DAVIS's layout, of the first --frames frames of each, all objects as one. Times are of
three objects at 480x854, all engines in turn, frame by frame, after WARM_UP frames; a ratio is the
median over frames of the ratio within a frame, also of CPU time, for machines with other work.
--exports keeps the graphs and uses again those that are there. Writes <date>-int8-cpu.json.
"""

from __future__ import annotations

import sys

# This folder goes last: it has a file with the name of the package `onnx`.
sys.path.append(sys.path.pop(0))

import argparse
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from environment import describe, median_ratio, parser_of, write_json
from exports import export, iou, labels_of, mean_j
from onnxruntime import InferenceSession
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import MinMaxCalibrater, save_tensors_data
from rich.console import Console
from rich.table import Table

from vosengine import OnnxSegmenter, Segmenter, keep_freed_memory
from vosengine.benchmark import drawn_scene
from vosengine.evaluation import Annotated, find_annotated
from vosengine.onnx.library import LIBRARY
from vosengine.onnx.manifest import Manifest, hash_of
from vosengine.onnx.sessions import session_options
from vosengine.timing import summarise

SIZE, OBJECTS, WARM_UP = (480, 854), 3, 11
CALIBRATED = "blackswan", "horsejump-high", "scooter-black"
RECORDED = slice(20, 26)  # frames of a clip; the first is given with its mask
# Convolutions with what onnxruntime fuses into them, and what else may stay in int8 between them.
FUSED = "Conv", "Gemm", "Relu", "Clip"
CHAIN = (*FUSED, "Add", "Concat", "Resize", "AveragePool", "Gather")
VERBS = "encode", "segment", "remember"
THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Variant:
    """Graphs that are quantised, types of their nodes, whether the last convolution of a graph is
    left in float32, and activations: int8 with zero point 0 (S8S8) or uint8 (U8S8)."""

    verbs: tuple[str, ...]
    operators: tuple[str, ...] = FUSED
    last_in_float: bool = False
    symmetric: bool = False


VARIANTS = {
    "encode": Variant(("encode",)),
    "remember": Variant(("remember",)),
    "segment, remember": Variant(("segment", "remember")),
    "segment, remember, S8S8": Variant(("segment", "remember"), symmetric=True),
    "all": Variant(VERBS),
    "segment, remember, last in float": Variant(("segment", "remember"), last_in_float=True),
    "all, every operator": Variant(VERBS, CHAIN),
}


class Recorder:
    """A session that keeps what it is fed."""

    def __init__(self, session: Any) -> None:
        self.session, self.fed = session, list[dict[str, np.ndarray]]()

    def __call__(self, *tables: Any) -> Any:
        inputs = self.session.inputs(*tables)
        self.fed.append({name: value.numpy() for name, value in inputs.items()})
        return self.session(inputs)


def calibrate(folder: Path, clips: Sequence[Annotated]) -> None:
    """Write FOLDER/<verb>.ranges.json, the ranges of a graph's tensors, of every verb."""
    segmenter = OnnxSegmenter(folder, threads=THREADS)
    sessions = segmenter.sessions._sessions
    recorders = {verb: Recorder(sessions[verb]) for verb in VERBS}
    sessions.update(recorders)  # type: ignore[arg-type]
    for clip in clips:
        labels_of(segmenter, clip, RECORDED)
    for verb, recorder in recorders.items():
        with tempfile.TemporaryDirectory() as scratch:
            augmented = str(Path(scratch, "augmented.onnx"))
            calibrater = MinMaxCalibrater(folder / f"{verb}.onnx", CHAIN, augmented)
            calibrater.augment_graph()
            # Its own session would lack the library of operators.
            calibrater.infer_session = InferenceSession(
                augmented, session_options(THREADS, LIBRARY), providers=["CPUExecutionProvider"]
            )
            calibrater.collect_data(Reader(recorder.fed))
            save_tensors_data(calibrater.compute_data(), folder / f"{verb}.ranges.json")


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The inputs of a graph's runs, one after the other."""

    def __init__(self, fed: Sequence[dict[str, np.ndarray]]) -> None:
        self._rest = iter(fed)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


def quantise(folder: Path, variant: Variant, into: Path) -> None:
    """Write an export with the graphs of `variant` in int8."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    manifest = Manifest.read(folder)
    graphs = dict(manifest.graphs)
    for verb, graph in manifest.graphs.items():
        source, target = folder / graph.file, into / graph.file
        if verb not in variant.verbs:
            shutil.copy(source, target)
            continue
        names = [n.name for n in onnx.load(str(source)).graph.node if n.op_type == "Conv"]
        quantize_static(
            str(source),
            str(target),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(variant.operators),
            per_channel=True,
            activation_type=QuantType.QInt8 if variant.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=names[-1:] if variant.last_in_float else [],
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=folder / f"{verb}.ranges.json",
            extra_options={"ActivationSymmetric": variant.symmetric},
        )
        graphs[verb] = replace(graph, sha256=hash_of(target))
    replace(manifest, graphs=graphs).write(into)


def score(engines: dict[str, Any], clips: Sequence[Annotated], frames: int) -> dict[str, Any]:
    """Mean J of every engine by clip, and the mean IoU of its masks with those of "fp32"."""
    scores: dict[str, Any] = {}
    for name, engine in engines.items():
        labels = [labels_of(engine, clip, slice(frames)) for clip in clips]
        if name == "fp32":
            base = labels
        shared = [iou(ours[1:], theirs[1:]) for ours, theirs in zip(labels, base, strict=True)]
        j = {clip.name: mean_j(own, clip) for clip, own in zip(clips, labels, strict=True)}
        means = {"mean_j": float(np.mean([*j.values()])), "iou": float(np.mean(shared))}
        scores[name] = {"j": j, **means}
        print(f"{name}: mean J {scores[name]['mean_j']:.4f}, IoU {scores[name]['iou']:.4f}")
    return scores


def clock(engines: dict[str, Any], steps: int) -> dict[str, Any]:
    """Milliseconds and CPU milliseconds of a step of every engine, and how many times as fast as
    "fp32" and "eager"."""
    scene, times = drawn_scene(SIZE), {name: list[tuple[float, float]]() for name in engines}
    for engine in engines.values():
        engine.reset()
    for index in range(WARM_UP + steps):
        prompt = scene.prompt(OBJECTS) if index == 0 else None
        for name, engine in engines.items():
            start = time.perf_counter(), time.process_time()
            engine.step(scene.frame(index), prompt)
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    milliseconds = {name: 1e3 * np.array(values[WARM_UP:]) for name, values in times.items()}
    return {
        name: {
            **summarise(values[:, 0].tolist()),
            "cpu_p50_ms": round(float(np.median(values[:, 1])), 1),
            **{
                f"{kind}times_as_fast_as_{base}": median_ratio(
                    milliseconds[base][:, column], values[:, column]
                )
                for base in ("fp32", "eager")
                for column, kind in enumerate(("", "cpu_"))
            },
        }
        for name, values in milliseconds.items()
    }


def compare(model: str, options: argparse.Namespace, exports: Path) -> dict[str, Any]:
    folder = exports / model
    if not (folder / "model.json").is_file():
        export(model, options.weights, folder, "vosengine")
    clips = find_annotated(options.data)
    calibrated = [clip for clip in clips if clip.name in CALIBRATED]
    chosen = {name: VARIANTS[name] for name in options.variants}
    if not all((folder / f"{verb}.ranges.json").is_file() for verb in VERBS):
        calibrate(folder, calibrated)
    engines: dict[str, Any] = {"fp32": OnnxSegmenter(folder, threads=THREADS)}
    for number, (name, variant) in enumerate(chosen.items()):
        quantise(folder, variant, exports / f"{model}-{number}")
        engines[name] = OnnxSegmenter(exports / f"{model}-{number}", threads=THREADS)
    accuracy = score(engines, clips, options.frames) if options.frames else {}
    eager = Segmenter(model, weights=options.weights, engine="eager", precision="fp32")
    speed = clock({"eager": eager, **engines}, options.steps)
    rows = {name: {**speed[name], **accuracy.get(name, {})} for name in speed}
    return {"model": model, "variants": {n: asdict(v) for n, v in chosen.items()}, "rows": rows}


def main() -> None:
    keep_freed_memory()  # as the command line does
    parser = parser_of(__doc__, device=False)
    parser.add_argument("models", nargs="*", default=["stm"], help="with the policy 'memory'")
    parser.add_argument("--data", type=Path, required=True, help="clips in DAVIS's layout")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--variants", type=lambda names: names.split(";"), default=[*VARIANTS])
    parser.add_argument("--frames", type=int, default=15, help="of a clip; 0: J is not measured")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--exports", type=Path)
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # advice of onnxruntime's quantiser
    torch.set_num_threads(THREADS)
    table = Table(
        "model", "engine", "p50 ms", "CPU ms", "to fp32", "to eager", "mean J", "IoU with fp32"
    )
    load, comparisons = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as scratch:
        for model in options.models:
            comparisons.append(compare(model, options, options.exports or Path(scratch)))
            for name, row in comparisons[-1]["rows"].items():
                ratios = (row[f"cpu_times_as_fast_as_{b}"] for b in ("fp32", "eager"))
                scores = (row.get("mean_j", np.nan), row.get("iou", np.nan))
                cells = (*(f"{r:.2f}x" for r in ratios), *(f"{s:.4f}" for s in scores))
                table.add_row(
                    model, name, *(f"{row[k]:.0f}" for k in ("p50_ms", "cpu_p50_ms")), *cells
                )
    Console(width=120).print(table)
    facts = describe(torch.device("cpu"))
    result = {
        **facts,
        "instructions": "VNNI" if "_vnni" in Path("/proc/cpuinfo").read_text() else "no VNNI",
        "load_at_the_start": round(load, 2),
        "threads": THREADS,
        "weights": options.weights,
        "size": list(SIZE),
        "objects": OBJECTS,
        "frames_scored": options.frames,
        "calibrated": {clip: [RECORDED.start, RECORDED.stop] for clip in CALIBRATED},
        "models": comparisons,
    }
    write_json(result, options.folder / f"{facts['date']}-int8-cpu.json")


if __name__ == "__main__":
    main()
