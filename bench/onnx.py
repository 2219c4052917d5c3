"""Exported models in onnxruntime beside torch: a step of each, in turn, on the same frames.

    python bench/onnx.py [munet giel ...] [--weights demo] [--objects 1,3] [--frames 15]
        [--ops standard,contrib,vosengine] [--size 480x854] [--providers CPUExecutionProvider]
        [--folder bench/results]

Every model is exported by `vosengine export` with each of --ops, in separate processes, whose time
and memory are recorded. Then an eager Segmenter, a fast one, and an OnnxSegmenter over each of the
exports step through one drawn clip, frame by frame in turn, so that noise affects all alike; eleven
warm-up frames are not timed. An export with "contrib" that has only standard operators is not timed
a second time. Writes <date>-onnx-<cpu or gpu>.json.
"""

from __future__ import annotations

import sys

# Search this folder last: this file has the name of the package `onnx`.
sys.path.append(sys.path.pop(0))

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe, parser_of, write_json
from exports import OPS, export
from rich.console import Console
from rich.table import Table

from vosengine import OnnxSegmenter, Segmenter, keep_freed_memory, list_models
from vosengine.benchmark import drawn_scene
from vosengine.timing import summarise

WARM_UP = 11


def engines(
    model: str, weights: str, folders: dict[str, Path], providers: list[str] | None
) -> dict[str, Any]:
    """All engines that are compared, each with its own stream."""
    device = "cuda" if providers and providers[0].startswith("CUDA") else "cpu"
    options: Any = {"weights": weights, "device": device, "precision": "fp32"}
    return {
        "eager": Segmenter(model, engine="eager", **options),
        "fast": Segmenter(model, **options),
        **{ops: OnnxSegmenter(folder, providers=providers) for ops, folder in folders.items()},
    }


def measure(variants: dict[str, Any], scene: Any, objects: int, frames: int) -> dict[str, Any]:
    """Milliseconds of every step after the warm-up, and agreement of labels with eager's."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    differs: dict[str, list[float]] = {name: [] for name in variants}
    takes_mask = variants["eager"].method.takes_mask
    for index in range(WARM_UP + frames):
        prompt = scene.prompt(objects) if index == 0 and takes_mask else None
        labels = {}
        for name, engine in variants.items():
            start = time.perf_counter()
            result = engine.step(scene.frame(index), prompt)
            labels[name] = None if result is None else result.numpy()
            times[name].append((time.perf_counter() - start) * 1e3)
        if labels["eager"] is not None:
            for name in variants:
                differs[name].append(float(np.mean(labels[name] != labels["eager"])))
    p50 = {name: float(np.median(times[name][WARM_UP:])) for name in variants}
    return {
        "objects": objects,
        **{
            name: {
                **summarise(times[name][WARM_UP:]),
                "differs": float(np.mean(differs[name])),
                "times_as_fast_as_eager": round(p50["eager"] / p50[name], 3),
                "times_as_fast_as_fast": round(p50["fast"] / p50[name], 3),
            }
            for name in variants
        },
    }


def cell(point: dict[str, Any], name: str) -> str:
    """Format p50 (p95) and the speed-up over eager."""
    if name not in point:
        return "as standard"
    found = point[name]
    ratio = f"{found['times_as_fast_as_eager']:.2f}x"
    return f"{found['p50_ms']:.0f} ({found['p95_ms']:.0f}) {ratio}"


def main() -> None:
    keep_freed_memory()  # as the command line does
    parser = parser_of(__doc__, device=False)
    parser.add_argument("models", nargs="*", default=list(list_models()))
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--objects", default="1,3")
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--ops", default=",".join(OPS))
    parser.add_argument("--size", default="480x854")
    parser.add_argument("--providers", default="CPUExecutionProvider")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    height, width = map(int, options.size.split("x"))
    providers = options.providers.split(",")
    scene, found = drawn_scene((height, width)), []
    asked = options.ops.split(",")
    names = ["eager", "fast", *asked]
    table = Table("model", "objects", *(f"{name} p50 (p95) ms, to eager" for name in names))
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            folders = {ops: Path(scratch, ops) for ops in asked}
            written = {
                ops: export(model, options.weights, folder, ops) for ops, folder in folders.items()
            }
            if "standard" in asked and "contrib" in asked and not written["contrib"]["operators"]:
                del folders["contrib"]
            counts = [int(n) for n in options.objects.split(",")]
            points = []
            for objects in counts if model != "imcnet" else [1]:
                variants = engines(model, options.weights, folders, providers)
                point = measure(variants, scene, objects, options.frames)
                points.append(point)
                table.add_row(model, str(objects), *(cell(point, name) for name in names))
        found.append({"model": model, "export": written, "points": points})
        seconds = ", ".join(f"{ops} {each['seconds']} s" for ops, each in written.items())
        print(f"{model}: exported: {seconds}", flush=True)
    Console().print(table)
    device = torch.device("cuda" if providers[0].startswith("CUDA") else "cpu")
    facts = describe(device)
    kind = "gpu" if device.type == "cuda" else "cpu"
    result = {
        **facts,
        "weights": options.weights,
        "size": [height, width],
        "providers": providers,
        "ops": asked,
        "models": found,
    }
    write_json(result, options.folder / f"{facts['date']}-onnx-{kind}.json")


if __name__ == "__main__":
    main()
