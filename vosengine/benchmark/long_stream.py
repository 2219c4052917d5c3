"""A long stream: latency and memory against the index of the frame."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..timing import summarise
from .measure import MIB, Plan, begin, peak_host_bytes, stream
from .scenes import Scene
from .variants import OURS, VARIANTS

STATM = Path("/proc/self/statm")
EVERY = 10  # frames between two readings of the memory


def measure_stream(
    model: str,
    objects: int,
    scene: Scene,
    device: torch.device,
    plan: Plan,
    frames: int,
    report: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One stream of `frames` frames in our variant, timed from the first one on.

    Returns  `milliseconds` of every frame until its labels are on the host; `state_mib`, what the
             engine holds of the stream, and `held_mib`, by torch on a GPU and by the process on a
             CPU, at the frames `at`; the percentiles of all but the first tenth
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
                state.append(round(segmenter._state.nbytes / MIB, 2))
            report()
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
    """What is held now: by torch on a GPU; by the process, or the most it ever held where the
    system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if STATM.is_file():
        return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak_host_bytes()
