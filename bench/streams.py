"""Many streams on one engine, compared with as many Segmenters that each have their own weights.

    python bench/streams.py [--model stm] [--weights demo] [--streams 1,2,4,8,16] [--rounds 10]
        [--max-batch N] [--device auto] [--folder bench/results]

Streams of a procedural clip of 480x854 with one object each. In a round every stream receives a
frame: those of the engine are submitted and stepped until all have results, then the Segmenters
step in turn; noise affects both alike. A ratio is the median over rounds of the Segmenters' time to
the engine's: above 1 the engine is faster. p50 and p99 are of a frame, from the start of the round
to its result in the engine. Resident memory is that of a process with that many streams of one
kind. Also timed: opening, saving and loading a stream. Writes <date>-streams-<device>.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe, median_ratio, parser_of, write_json
from rich.console import Console
from rich.table import Table

from vosengine import Engine, Segmenter
from vosengine.benchmark.long_stream import held_bytes
from vosengine.benchmark.measure import MIB
from vosengine.benchmark.streams import one_round
from vosengine.device import choose_device
from vosengine.timing import summarise, timed
from vosengine.training.synthetic import Clip, ClipConfig, make_clip

SIZE = (480, 854)
WARM_UP = 3  # rounds
HELD = 2  # frames of every stream before memory is read


def draw() -> Clip:
    height, width = SIZE
    return make_clip(ClipConfig(frames=8, height=height, width=width, objects=(1, 1)), seed=3)


def prompt_of(segmenter: Segmenter, clip: Clip) -> np.ndarray | None:
    return clip.masks[0] if segmenter.method.needs_mask else None


def measure(settings: argparse.Namespace, count: int, clip: Clip) -> dict[str, Any]:
    """Measure rounds of `count` streams, on one engine and as separate Segmenters."""
    options = {"weights": settings.weights, "device": settings.device}
    engine = Engine(settings.model, max_batch=settings.max_batch, **options)
    shared = [engine.open() for _ in range(count)]
    alone = [Segmenter(settings.model, **options) for _ in range(count)]
    for stream in (*shared, *alone):
        stream.step(clip.frames[0], prompt_of(stream, clip))
    latencies: list[float] = []
    together, apart = [], []
    for index in range(WARM_UP + settings.rounds):
        frame = clip.frames[1 + index % (len(clip.frames) - 1)]
        answered = one_round(engine, shared, frame)
        singly = sum(timed(lambda s=s, f=frame: s.step(f), engine.device)[1] for s in alone)
        if index >= WARM_UP:
            latencies += answered
            together.append(answered[-1])
            apart.append(singly)
    return {
        "streams": count,
        "max_batch": engine.max_batch,
        "frame": summarise(latencies),
        "frames_per_second": round(1e3 * count / float(np.median(together)), 2),
        "pages": engine.pools.used,
        "apart_over_together": median_ratio(apart, together),
    }


def lifetime(settings: argparse.Namespace, clip: Clip) -> dict[str, Any]:
    """Return milliseconds to open a stream up to its first result, to save it and to load it."""
    engine = Engine(settings.model, weights=settings.weights, device=settings.device)
    times: dict[str, list[float]] = {"open": [], "save": [], "load": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream"
        for _ in range(WARM_UP + settings.rounds):

            def opened() -> Segmenter:
                stream = engine.open()
                stream.step(clip.frames[0], prompt_of(stream, clip))
                return stream

            stream, milliseconds = timed(opened, engine.device)
            times["open"].append(milliseconds)
            times["save"].append(timed(lambda s=stream: s.save_state(path), engine.device)[1])
            times["load"].append(timed(lambda s=stream: s.load_state(path), engine.device)[1])
            engine.close(stream)
        size = path.stat().st_size
    return {
        **{name: summarise(values[WARM_UP:]) for name, values in times.items()},
        "saved_mib": round(size / MIB, 2),
    }


def resident(model: str, weights: str, count: int, shares: bool) -> float:
    """Return the resident MiB of this process with that many streams, after HELD frames each."""
    clip = draw()
    engine = Engine(model, weights=weights, device="cpu") if shares else None
    streams = []
    for _ in range(count):
        stream = engine.open() if engine else Segmenter(model, weights=weights, device="cpu")
        streams.append(stream)
        for index in range(HELD):
            stream.step(clip.frames[index], None if index else prompt_of(stream, clip))
    return held_bytes(torch.device("cpu")) / MIB


def memory(settings: argparse.Namespace, count: int) -> dict[str, float]:
    usage = {}
    for name, shares in (("together", True), ("apart", False)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = settings.model, settings.weights, count, shares
            usage[f"resident_{name}_mib"] = round(pool.apply(resident, arguments), 1)
    return usage


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="stm")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--streams", default="1,2,4,8,16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--max-batch", type=int, default=None)
    settings = parser.parse_args()
    device, clip = choose_device(settings.device), draw()
    rows = []
    table = Table("streams", "p50 ms", "p99 ms", "frames/s", "apart / together", "MiB", "MiB apart")
    for count in map(int, settings.streams.split(",")):
        row = measure(settings, count, clip)
        if device.type == "cpu":
            row |= memory(settings, count)
        rows.append(row)
        memory_cells = [f"{row.get(f'resident_{n}_mib', 0):.0f}" for n in ("together", "apart")]
        table.add_row(str(count), f"{row['frame']['p50_ms']:.0f}", f"{row['frame']['p99_ms']:.0f}",
                      f"{row['frames_per_second']:.1f}", f"{row['apart_over_together']:.2f}",
                      *memory_cells)  # fmt: skip
    Console().print(table)
    report = {**describe(device), "model": settings.model, "frame": list(SIZE), "rows": rows,
              "lifetime": lifetime(settings, clip)}  # fmt: skip
    Console().print({n: v["p50_ms"] for n, v in report["lifetime"].items() if isinstance(v, dict)})
    write_json(report, settings.folder / f"{report['date']}-streams-{device.type}.json")


if __name__ == "__main__":
    main()
