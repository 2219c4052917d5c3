"""Many streams on one engine: latency from the arrival of a frame to its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from ..engine.engine import Engine
from ..engine.segmenter import Segmenter
from ..timing import summarise, synchronise
from .measure import MIB
from .scenes import Scene


def one_round(engine: Engine, streams: Sequence[Segmenter], frame: np.ndarray) -> list[float]:
    """Submit one frame of every stream at once and step until all have results. Returns the
    milliseconds from the start to each result, in order."""
    synchronise(engine.device)
    start = time.perf_counter()
    taken: list[float] = []
    for stream in streams:
        engine.submit(stream, frame)
    while answered := engine.step():
        synchronise(engine.device)
        taken += [1e3 * (time.perf_counter() - start)] * len(answered)
    return taken


def measure_streams(
    engine: Engine, scene: Scene, objects: int, count: int, *, warm_up: int, rounds: int
) -> dict[str, Any]:
    """Measure a row of the table: `count` streams of the same frames, each with `objects` objects.

    returns  streams, max_batch, percentiles in ms of a frame from arrival to result, total frames
             per second of all streams, pages in use and their MiB
    """
    streams = [engine.open() for _ in range(count)]
    prompt = scene.prompt(objects) if engine.method.takes_mask else None
    for stream in streams:
        stream.step(scene.frame(0), prompt)
    latencies: list[float] = []
    seconds = 0.0
    warm_up += streams[0].latency  # frames before the first result
    for index in range(1, 1 + warm_up + rounds):
        taken = one_round(engine, streams, scene.frame(index))
        if index > warm_up:
            latencies += taken
            seconds += taken[-1] / 1e3
    pages, held = engine.pools.used, engine.pools.used_bytes
    for stream in streams:
        engine.close(stream)
    return {
        "streams": count,
        "max_batch": engine.max_batch,
        "frame": summarise(latencies),
        "frames_per_second": round(count * rounds / seconds, 2),
        "pages": pages,
        "pages_mib": round(held / MIB, 2),
    }


def table_of_streams(model: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table("streams", "p50 ms", "p99 ms", "frames/s", "pages", "MiB", title=model)
    for row in rows:
        frame = row["frame"]
        table.add_row(
            str(row["streams"]),
            f"{frame['p50_ms']:.1f}",
            f"{frame['p99_ms']:.1f}",
            f"{row['frames_per_second']:.1f}",
            str(row["pages"]),
            f"{row['pages_mib']:.1f}",
        )
    return table
