"""Whole models: the cost of a step against the number of objects, and memory against time.

    python bench/models.py [endless] [sweep] [cache] [--model stm] [--device auto]
                           [--folder bench/results]

`endless` follows a clip of 500 frames and notes the process's resident memory and the latency; it
goes first, because freed memory of another measurement would hide its own. `sweep` times one step
at 480p for 1, 2, 3, 5 and 10 objects, split by verb, beside the published form of the decoder,
which computes its skip branches once per object. `cache` times a streamed frame of imcnet, whose
neighbours' backbone features are held, beside the clip of three frames computed from nothing.
Each writes <date>-<part>-<model>-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, describe, write_json
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from vosengine import Segmenter
from vosengine.config import IMCNetConfig, MemoryConfig
from vosengine.device import choose_device
from vosengine.kernels import use_backend
from vosengine.registry import build, entry
from vosengine.timing import summarise, timed
from vosengine.training.synthetic import ClipConfig, iterate_clip
from vosengine.types import Geometry, Masks

PARTS = ("endless", "sweep", "cache")
OBJECTS = (1, 2, 3, 5, 10)
MEMORY_FRAMES = 5
SIZE = (480, 854)


def published_decode(method: Any, pyramid: Any, joined: torch.Tensor) -> torch.Tensor:
    """The decoder as the papers time it: whole, once per object."""
    rows = [method.decoder(row[None], *method.decoder.skips(pyramid)) for row in joined]
    return torch.cat(rows)


def sweep(model: str, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """One row per object count; every round times every count, so that noise meets all alike."""
    config = entry(model).config(memory=MemoryConfig(max_frames=MEMORY_FRAMES))
    method = build(model, config).to(device)
    geometry = Geometry.fit(SIZE, size=None, multiple=method.stride)
    height, width = geometry.network
    frame = torch.rand(1, 3, height, width, device=device)
    channels = 2 * config.value_channels
    times: dict[tuple[int, str], list[float]] = {}
    states = {}
    for count in OBJECTS:
        states[count] = state = method.start(geometry, count)
        features = method.encode(frame)
        masks = Masks(
            torch.rand(1 + count, height, width, device=device), prompted=(*range(count),)
        )
        for _ in range(MEMORY_FRAMES):
            method.remember([features] * len(method.sees), masks, state)
    for index in range(rounds + 1):
        for count in OBJECTS if index else OBJECTS[:2]:  # the first round warms up and checks
            seen = [method.encode(frame)] * len(method.sees)
            masks = Masks(torch.rand(1 + count, height, width, device=device))
            joined = torch.rand(count, channels, height // 16, width // 16, device=device)
            pyramid = method.query_encoder(frame)
            verbs: dict[str, Callable[[], Any]] = {
                "encode": lambda: method.encode(frame),
                "segment": lambda s=seen, c=count: method.segment(s, states[c]),
                "remember": lambda s=seen, m=masks, c=count: method.remember(s, m, states[c]),
                "decode": lambda p=pyramid, j=joined: method.decoder(j, *method.decoder.skips(p)),
                "decode, published": lambda p=pyramid, j=joined: published_decode(method, p, j),
            }
            for verb, call in verbs.items():
                milliseconds = timed(call, device)[1]
                if index:
                    times.setdefault((count, verb), []).append(milliseconds)
            if not index:
                _check_same(verbs["decode, published"](), verbs["decode"]())
    return [_sweep_row(count, times) for count in OBJECTS]


def _check_same(published: torch.Tensor, ours: torch.Tensor) -> None:
    """What is timed must be the same function."""
    difference = float((published - ours).abs().max() / published.abs().max())
    if not difference < 1e-3:
        sys.exit(f"the two forms of the decoder differ by {difference:.2g}: not timed")


def _sweep_row(count: int, times: dict[tuple[int, str], list[float]]) -> dict[str, Any]:
    verbs = ("encode", "segment", "remember")
    steps = [sum(parts) for parts in zip(*(times[count, verb] for verb in verbs), strict=True)]
    one = [sum(parts) for parts in zip(*(times[1, verb] for verb in verbs), strict=True)]
    return {
        "objects": count,
        "step": summarise(steps),
        "step_over_one_object": _median_ratio(steps, one),
        "decode_over_one_object": _median_ratio(times[count, "decode"], times[1, "decode"]),
        "published_over_ours_decode": _median_ratio(
            times[count, "decode, published"], times[count, "decode"]
        ),
        **{verb: summarise(times[count, verb]) for verb in (*verbs, "decode", "decode, published")},
    }


def _median_ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return round(ratios[len(ratios) // 2], 3)


def endless(model: str, device: torch.device, frames: int) -> dict[str, Any]:
    """Resident memory and latency along a clip, with a bank of six frames per object."""
    memory = MemoryConfig(max_frames=6)
    segmenter = Segmenter(model, device=str(device), max_objects=3, memory=memory)
    clip = iterate_clip(ClipConfig(frames=frames, height=96, width=160, objects=(2, 2)), seed=0)
    milliseconds, resident = [], {}
    for index, (frame, mask) in enumerate(clip):
        given = None if index else mask
        milliseconds.append(timed(lambda f=frame, m=given: segmenter.step(f, m), device)[1])
        if index % 50 == 0 and index:
            resident[index] = round(_resident_bytes() / 2**20, 1)
    last = max(resident)
    return {
        "frames": frames,
        "size": [96, 160],
        "max_frames": memory.max_frames,
        "resident_mib": resident,
        f"growth_mib_from_50_to_{last}": round(resident[last] - resident[50], 1),
        "frames_50_to_100": summarise(milliseconds[50:100]),
        "last_50_frames": summarise(milliseconds[-50:]),
    }


def cache(device: torch.device, rounds: int) -> dict[str, Any]:
    """IMCNet at its published size: a frame of a stream against its clip from nothing."""
    config = IMCNetConfig()
    method = build("imcnet", config).to(device)
    state = method.start(Geometry.fit(SIZE, size=config.size, multiple=method.stride), 1)
    frames = torch.rand(len(config.sees), 3, *config.size, device=device)
    held = [method.encode(frame[None]) for frame in frames]

    def streamed() -> torch.Tensor:
        newest = method.encode(frames[-1:])
        return method.segment([*held[:-1], newest], state).logits

    def from_nothing() -> torch.Tensor:
        whole = method.encode(frames)
        parts = [type(whole)(*(x[i : i + 1] for x in whole)) for i in range(len(frames))]
        return method.segment(parts, state).logits

    _check_same(streamed(), from_nothing())
    times = {"streamed": [], "from nothing": [], "encode": []}
    for _ in range(rounds):
        times["streamed"].append(timed(streamed, device)[1])
        times["from nothing"].append(timed(from_nothing, device)[1])
        times["encode"].append(timed(lambda: method.encode(frames[-1:]), device)[1])
    return {
        "size": list(config.size),
        "streamed_over_clip": _median_ratio(times["streamed"], times["from nothing"]),
        "flop_ratio": _flop(streamed) / _flop(from_nothing),
        **{name: summarise(values) for name, values in times.items()},
    }


def _flop(call: Callable[[], Any]) -> float:
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def show_sweep(found: dict[str, Any], console: Console) -> None:
    table = Table(
        "objects",
        "step p50 ms",
        "p95",
        "step / 1 object",
        "decode p50 ms",
        "decode / 1 object",
        "published decode / ours",
        title=f"{found['model']} at {SIZE[0]}x{SIZE[1]}, {MEMORY_FRAMES} memory frames",
    )
    for row in found["sweep"]:
        table.add_row(
            str(row["objects"]),
            f"{row['step']['p50_ms']:.0f}",
            f"{row['step']['p95_ms']:.0f}",
            f"{row['step_over_one_object']:.2f}",
            f"{row['decode']['p50_ms']:.0f}",
            f"{row['decode_over_one_object']:.2f}",
            f"{row['published_over_ours_decode']:.2f}",
        )
    console.print(table)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; all if none is given")
    parser.add_argument("--model", default="stm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3, help="of sweep and cache")
    parser.add_argument("--frames", type=int, default=501, help="of the endless clip")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    parts = given.part or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"part: wanted some of {', '.join(PARTS)}, given {', '.join(sorted(unknown))}")
    device = choose_device(given.device)
    console = Console()
    for part in PARTS:
        if part not in parts:
            continue
        found = {**describe(device), "model": "imcnet" if part == "cache" else given.model}
        if part == "endless":
            found["endless"] = endless(given.model, device, given.frames)
            console.print_json(json.dumps(found["endless"]))
        elif part == "cache":
            found["cache"] = cache(device, given.rounds)
            console.print_json(json.dumps(found["cache"]))
        else:
            found["sweep"] = sweep(given.model, device, given.rounds)
            show_sweep(found, console)
        name = f"{found['date']}-{part}-{found['model']}-{device.type}.json"
        write_json(found, given.folder / name)


if __name__ == "__main__":
    main()
