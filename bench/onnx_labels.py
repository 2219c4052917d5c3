"""Labels of exported models beside torch's over whole clips in DAVIS's layout.

    python bench/onnx_labels.py --data DAVIS [munet giel ...] [--weights demo] [--frames 0]
        [--ops standard,contrib,vosengine] [--threads N] [--folder bench/results]

Every model is exported by `vosengine export` with each of --ops. A fast fp32 Segmenter and an
OnnxSegmenter over each export step through every clip (--frames N: its first N frames) with the
mask of its first frame, if the model takes one. Written per clip: the fraction of pixels whose
label is not torch's (mean over frames; and of the worst frame), the IoU of everything that is
labelled with torch's, and J of both against the annotation. An export with "contrib" that has only
standard operators is not run a second time. Writes <date>-onnx-labels-cpu.json after each model.
"""

from __future__ import annotations

import sys

# This folder goes last: it has a file with the name of the package `onnx`.
sys.path.append(sys.path.pop(0))

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe, parser_of, write_json
from exports import OPS, export, iou, labels_of, mean_j
from rich.console import Console
from rich.table import Table

from vosengine import OnnxSegmenter, Segmenter, keep_freed_memory, list_models
from vosengine.evaluation import Annotated, find_annotated

MOST = 1e-3  # largest fraction of a clip's pixels that may differ


def compare(labels: np.ndarray, base: np.ndarray, clip: Annotated) -> dict[str, float]:
    differs = (labels != base).mean(axis=(1, 2))
    return {
        "differs": float(differs.mean()),
        "worst_frame": float(differs.max()),
        "iou": iou(labels, base),
        "j": mean_j(labels, clip),
    }


def run(model: str, options: argparse.Namespace, clips: Sequence[Annotated]) -> dict[str, Any]:
    """Compare all exports of a model with torch."""
    torch_engine = Segmenter(model, weights=options.weights, device="cpu", precision="fp32")
    takes_mask = torch_engine.method.takes_mask
    entry: dict[str, Any] = {"model": model, "frames": 0, "torch": {}, "exports": {}}
    with tempfile.TemporaryDirectory() as scratch:
        engines = {}
        for ops in options.ops:
            folder = Path(scratch, ops)
            written = export(model, options.weights, folder, ops)
            if ops != "contrib" or written["operators"]:
                engines[ops] = OnnxSegmenter(folder, threads=options.threads)
                entry["exports"][ops] = {}
        for clip in clips:
            frames = slice(options.frames or None)
            base = labels_of(torch_engine, clip, frames, takes_mask=takes_mask)
            entry["torch"][clip.name] = mean_j(base, clip)
            entry["frames"] += len(base)
            for ops, engine in engines.items():
                labels = labels_of(engine, clip, frames, takes_mask=takes_mask)
                entry["exports"][ops][clip.name] = point = compare(labels, base, clip)
                print(
                    f"{model} {ops} {clip.name}: {point['differs']:.6f} of the pixels differ, IoU "
                    f"{point['iou']:.4f}, J {point['j']:.4f} ({entry['torch'][clip.name]:.4f})",
                    flush=True,
                )
    return entry


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print a row per export."""
    table = Table("model", "ops", "frames", "differs", "worst clip", "least IoU", "mean J", "torch")
    for entry in results:
        for ops, clips in entry["exports"].items():
            differs = [point["differs"] for point in clips.values()]
            table.add_row(
                entry["model"],
                ops,
                str(entry["frames"]),
                f"{np.mean(differs):.6f}",
                f"{max(differs):.6f}" + ("" if max(differs) <= MOST else " (too many)"),
                f"{min(point['iou'] for point in clips.values()):.4f}",
                f"{np.mean([point['j'] for point in clips.values()]):.4f}",
                f"{np.mean([*entry['torch'].values()]):.4f}",
            )
    Console(width=110).print(table)


def main() -> None:
    keep_freed_memory()
    parser = parser_of(__doc__, device=False)
    parser.add_argument("models", nargs="*", default=list(list_models()))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--ops", type=lambda names: names.split(","), default=list(OPS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clips, facts = find_annotated(options.data), describe(torch.device("cpu"))
    results: list[dict[str, Any]] = []
    for model in options.models:
        results.append(run(model, options, clips))
        written = {**facts, "weights": options.weights, "ops": options.ops, "models": results}
        write_json(written, options.folder / f"{facts['date']}-onnx-labels-cpu.json")
    show(results)


if __name__ == "__main__":
    main()
