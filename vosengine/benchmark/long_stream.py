"""Long stream: latency and memory as a function of the frame index."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import torch

from ..timing import summarise
from .measure import MIB, Plan, begin, peak_host_bytes, stream
from .scenes import Scene
from .variants import OURS, VARIANTS

STATM = Path("/proc/self/statm")
EVERY = 10  # frames between two memory readings


def measure_stream(
    model: str,
    objects: int,
    scene: Scene,
    device: torch.device,
    plan: Plan,
    frames: int,
) -> dict[str, Any]:
    """Time one stream of `frames` frames in the variant "ours", from the first frame on.

    returns  `milliseconds` per frame until its labels are on the host; at the frames `at`,
             `state_mib`, the state of the stream, and `held_mib`, allocated by torch (GPU) or
             resident in the process (CPU); percentiles of all but the first tenth of the frames
    """
    variant = next(variant for variant in VARIANTS if variant.name == OURS)
    milliseconds: list[float] = []
    at, held, state = [], [], []
    with variant.running():
        segmenter = begin(model, variant, objects, scene, device, plan)
        steps = stream(segmenter, scene, objects)
        for index in range(frames):
            step = next(steps)
            start = time.perf_counter()
            answer = step()
            if answer is not None:
                answer.numpy()
            milliseconds.append(round(1e3 * (time.perf_counter() - start), 3))
            if index % EVERY == 0 or index == frames - 1:
                at.append(index)
                held.append(round(held_bytes(device) / MIB, 1))
                state.append(round(segmenter.memory_bytes / MIB, 2))
    return {
        "objects": objects,
        "size": list(scene.size),
        "milliseconds": milliseconds,
        "at": at,
        "held_mib": held,
        "state_mib": state,
        **summarise(milliseconds[frames // 10 :]),
    }


def held_bytes(device: torch.device) -> int:
    """Return the bytes held now: allocated by torch on a GPU, else resident in the process (its
    peak if the system does not report the current value)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if STATM.is_file():
        return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak_host_bytes()
