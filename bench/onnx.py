"""Exported models in onnxruntime beside torch: a step of each, in turn, on the same frames.

    python bench/onnx.py [munet giel ...] [--weights demo] [--objects 1,3] [--frames 15]
        [--size 480x854] [--providers CPUExecutionProvider] [--folder bench/results]

Every model is exported by `vosengine export` in a process of its own, whose time and memory are
kept. Then an OnnxSegmenter, an eager Segmenter and a fast one step through one drawn clip, frame by
frame in turn, so that noise meets all alike; eleven frames come before the clock. Writes
<date>-onnx-<cpu or gpu>.json.
"""

from __future__ import annotations

import sys

# This folder goes last: here is a file that is named as the package `onnx` is.
sys.path.append(sys.path.pop(0))

import argparse
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, describe, write_json
from rich.console import Console
from rich.table import Table

from vosengine import OnnxSegmenter, Segmenter, keep_freed_memory, list_models
from vosengine.benchmark import drawn_scene
from vosengine.timing import summarise

WARM_UP = 11
VARIANTS = ("onnxruntime", "eager", "fast")


def export(model: str, weights: str, folder: Path) -> dict[str, float]:
    """Seconds and peak MiB of the command that exports a model."""
    command = [sys.executable, "-m", "vosengine", "export", model]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--weights", weights, "--out", str(folder)], check=True, capture_output=True
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest so far
    return {"seconds": round(seconds, 1), "peak_mib": round(peak)}


def engines(model: str, weights: str, folder: Path, providers: list[str] | None) -> dict[str, Any]:
    """The three that are compared, each with a stream of its own."""
    device = "cuda" if providers and providers[0].startswith("CUDA") else "cpu"
    options: Any = {"weights": weights, "device": device, "precision": "fp32"}
    return {
        "onnxruntime": OnnxSegmenter(folder, providers=providers),
        "eager": Segmenter(model, engine="eager", **options),
        "fast": Segmenter(model, **options),
    }


def measure(variants: dict[str, Any], scene: Any, objects: int, frames: int) -> dict[str, Any]:
    """Milliseconds of every step after the warm-up, and how the labels agree with eager's."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    differs: dict[str, list[float]] = {name: [] for name in variants}
    takes_mask = variants["onnxruntime"].manifest.takes_mask
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
            }
            for name in variants
        },
    }


def main() -> None:
    keep_freed_memory()  # as the command line does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(list_models()))
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--objects", default="1,3")
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--size", default="480x854")
    parser.add_argument("--providers", default="CPUExecutionProvider")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    height, width = map(int, options.size.split("x"))
    providers = options.providers.split(",")
    scene, found = drawn_scene((height, width)), []
    table = Table("model", "objects", *(f"{name} p50 (p95) ms" for name in VARIANTS), "to eager")
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            written = export(model, options.weights, Path(scratch))
            counts = [int(n) for n in options.objects.split(",")]
            points = []
            for objects in counts if model != "imcnet" else [1]:
                variants = engines(model, options.weights, Path(scratch), providers)
                point = measure(variants, scene, objects, options.frames)
                points.append(point)
                cells = (f"{point[n]['p50_ms']:.0f} ({point[n]['p95_ms']:.0f})" for n in VARIANTS)
                ratio = f"{point['onnxruntime']['times_as_fast_as_eager']:.2f}x"
                table.add_row(model, str(objects), *cells, ratio)
        found.append({"model": model, "export": written, "points": points})
        print(f"{model}: exported in {written['seconds']} s", flush=True)
    Console().print(table)
    device = torch.device("cuda" if providers[0].startswith("CUDA") else "cpu")
    facts = describe(device)
    kind = "gpu" if device.type == "cuda" else "cpu"
    result = {
        **facts,
        "weights": options.weights,
        "size": [height, width],
        "providers": providers,
        "models": found,
    }
    write_json(result, options.folder / f"{facts['date']}-onnx-{kind}.json")


if __name__ == "__main__":
    main()
