"""Exported models, on disk and on annotated clips: what int8.py, onnx.py and onnx_labels.py share.

Each of them moves this folder to the end of the path first: it has a file with the name of the
package `onnx`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vosengine.evaluation import Annotated, measure
from vosengine.onnx.manifest import Manifest
from vosengine.video import MaskSequence, open_source

OPS = "standard", "contrib", "vosengine"


def export(model: str, weights: str, folder: Path, ops: str) -> dict[str, Any]:
    """Seconds and peak MiB of the export command, and the parts left in standard operators."""
    command = [sys.executable, "-m", "vosengine", "export", model, "--ops", ops]
    command += ["--weights", weights, "--out", str(folder)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 1024
    manifest = Manifest.read(folder)
    return {
        "seconds": round(seconds, 1),
        "peak_mib": round(peak),
        "kept": manifest.ops_kept,
        "operators": sorted({each for g in manifest.graphs.values() for each in g.operators}),
    }


def labels_of(
    segmenter: Any, clip: Annotated, frames: slice, *, takes_mask: bool = True
) -> np.ndarray:
    """Labels uint8 [frames, H, W] of consecutive frames; the first is given with its mask."""
    masks = MaskSequence(clip.annotations)
    prompt = masks.read(clip.annotations[frames][0]).labels if takes_mask else None
    segmenter.reset()
    results = []
    for path in clip.frames[frames]:
        with open_source(path) as source:
            image = next(iter(source)).image
        results.append(segmenter.step(image, prompt))
        prompt = None
    results.extend(segmenter.flush())
    return np.stack([result.numpy() for result in results if result is not None])


def mean_j(labels: np.ndarray, clip: Annotated) -> float:
    """Mean J of the labels of a clip's first frames, all objects as one."""
    masks = MaskSequence(clip.annotations)
    truth = (masks.read(path).labels for path in clip.annotations)
    return measure(list(zip(labels, truth, strict=False)), binary=True, name=clip.name).mean.j


def iou(ours: np.ndarray, theirs: np.ndarray) -> float:
    """IoU, 0..1, of everything that is labelled; 0 if nothing is."""
    one, other = ours > 0, theirs > 0
    return float((one & other).sum() / max((one | other).sum(), 1))
