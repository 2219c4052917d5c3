"""Batches of clips: distribution of jobs to processes, speed on real clips, memory of a long run.

    python bench/batch.py [--parts sleep,clips,many] [--data FOLDER] [--model stm] [--weights demo]
        [--clips 10] [--frames 15] [--many 1000] [--workers 2] [--folder bench/results]

sleep  jobs that take no CPU, with 1 and with 8 processes: jobs a second while all processes are
       busy, and the ratio to 8 times the rate of one process
clips  the first --clips clips of a data set in DAVIS layout (without --data: drawn clips of
       480x854), --frames frames of each, with 1 process and with 2 that share the cores: frames a
       second from the first frame to the last, and including the start of the processes
many   drawn clips of 10 frames of 32x48, with --workers processes: resident memory of the driver
       and of the workers over the run, time per clip, and a check that every mask was written

Writes <date>-batch-cpu.json; parts that were not run keep their earlier results.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe, parser_of, resident_mib, write_json
from PIL import Image
from rich.console import Console
from rich.table import Table

from vosengine.batch.plan import BatchOptions
from vosengine.batch.pools import open_pool
from vosengine.batch.supervisor import Event
from vosengine.commands.batch import Tally, batch
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import write_labels

SLEEP_S, SLEEPS = 0.5, 24  # duration of a job, and number of jobs per process
CLIP_FRAMES = 10


class Sleeper:
    """Worker whose jobs are numbers of seconds to sleep; returns start, end and process id."""

    def __call__(self, job: float, report: Any, should_stop: Any) -> dict[str, Any]:
        began = time.monotonic()
        time.sleep(job)
        return {"began": began, "ended": time.monotonic(), "process": os.getpid()}


def sleeper(threads: int) -> Sleeper:
    return Sleeper()


def jobs_per_second(workers: int) -> float:
    """Rate while all processes are busy; jobs partly within that time count in proportion."""
    done: list[dict[str, Any]] = []

    def listen(event: Event) -> None:
        if event.kind == "done":
            done.append(event.value)

    pool = open_pool(sleeper, workers=workers, retries=0, ray=None, device="cpu", listen=listen)
    pool.work([SLEEP_S] * (SLEEPS * workers), lambda: False)
    by_process = [[x for x in done if x["process"] == p] for p in {x["process"] for x in done}]
    assert len(by_process) == workers and len(done) == SLEEPS * workers
    start = max(min(x["began"] for x in jobs) for jobs in by_process)
    end = min(max(x["ended"] for x in jobs) for jobs in by_process)
    shares = (
        max(0.0, min(x["ended"], end) - max(x["began"], start)) / (x["ended"] - x["began"])
        for x in done
    )
    return sum(shares) / (end - start)


def measure_sleep() -> dict[str, Any]:
    one, eight = jobs_per_second(1), jobs_per_second(8)
    return {
        "job_s": SLEEP_S,
        "jobs_per_s": {"1": round(one, 4), "8": round(eight, 4)},
        "of_8_times_1": round(eight / (8 * one), 4),
    }


def draw(root: Path, count: int, shape: tuple[int, int], frames: int) -> None:
    """Write clips of one moving object as folders of PNG, with their first masks beside them; eight
    are drawn, the others are links to them."""
    drawn = min(count, 8)
    for seed in range(drawn):
        config = ClipConfig(frames=frames, height=shape[0], width=shape[1], objects=(1, 1))
        clip = make_clip(config, seed)
        folder = root / f"{seed:04d}"
        folder.mkdir(parents=True)
        for index, image in enumerate(clip.frames):
            Image.fromarray(image).save(folder / f"{index:05d}.png")
        write_labels(root / f"{seed:04d}.png", clip.masks[0])
    for number in range(drawn, count):
        os.symlink(f"{number % drawn:04d}", root / f"{number:04d}")
        os.symlink(f"{number % drawn:04d}.png", root / f"{number:04d}.png")


def clips_of(args: argparse.Namespace, scratch: Path) -> tuple[str, ...]:
    """Sources for `batch`: a manifest of the data set's first clips, or drawn clips."""
    if args.data is None:
        draw(scratch / "drawn", args.clips, (480, 854), args.frames)
        return (str(scratch / "drawn"),)
    images, masks = (args.data / name / "480p" for name in ("JPEGImages", "Annotations"))
    names = sorted(path.name for path in images.iterdir())[: args.clips]
    manifest = scratch / "clips.jsonl"
    lines = [
        {"clip": str((images / n).absolute()), "mask": str((masks / n / "00000.png").absolute())}
        for n in names
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (str(manifest),)


def run_batch(
    clips: tuple[str, ...],
    out: Path,
    workers: int,
    report: Callable[[Tally], None],
    **options: Any,
) -> dict[str, Any]:
    run = {"device": "cpu", "overlay": False, **options}
    summary = batch(BatchOptions(clips, out, run, workers=workers), report=report)
    assert summary["complete"] and summary["done"] == summary["clips"], summary
    return summary


def measure_clips(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    clips = clips_of(args, scratch)
    results: dict[str, Any] = {"model": args.model, "weights": args.weights}
    for workers in (1, 2):
        seen: list[tuple[float, int]] = []
        options = {"model": args.model, "weights": args.weights, "limit": args.frames}
        note = partial(_record, seen)
        summary = run_batch(clips, scratch / f"by{workers}", workers, note, **options)
        (began, first), (ended, last) = seen[0], seen[-1]
        results[str(workers)] = {
            "clips": summary["clips"],
            "frames": summary["frames"],
            "frames_per_s": round((last - first) / (ended - began), 3),
            "with_start": summary["frames_per_second"],
        }
    results["2_over_1"] = round(results["2"]["frames_per_s"] / results["1"]["frames_per_s"], 3)
    return results


def _record(seen: list[tuple[float, int]], tally: Tally) -> None:
    if tally.frames and (not seen or tally.frames > seen[-1][1]):
        seen.append((time.monotonic(), tally.frames))


class Memory(threading.Thread):
    """Samples the resident MiB of this process and of its largest child once a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self.done = threading.Event()

    def run(self) -> None:
        me = os.getpid()
        while not self.done.wait(1.0):
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
            held = [resident_mib(int(child)) for child in children]
            self.samples.append((resident_mib(me), max(held, default=0.0)))


def measure_many(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    draw(scratch / "many", args.many, (32, 48), CLIP_FRAMES)
    memory = Memory()
    memory.start()
    began = time.monotonic()
    options = {"model": args.model, "weights": args.weights, "size": 32}
    out = scratch / "out"
    summary = run_batch((str(scratch / "many"),), out, args.workers, lambda tally: None, **options)
    seconds = time.monotonic() - began
    memory.done.set()
    memory.join()
    masks = sum(len(list((out / row["name"]).glob("*.png"))) for row in summary["table"])
    assert masks == args.many * CLIP_FRAMES, masks
    times = [row["seconds"] * 1e3 for row in summary["table"]]
    p50, p95 = (round(float(np.percentile(times, p)), 1) for p in (50, 95))
    return {
        "clips": args.many,
        "masks": masks,
        "workers": args.workers,
        "seconds": round(seconds, 1),
        "ms_per_clip": {"p50": p50, "p95": p95},
        "driver_mib": over_time([driver for driver, _ in memory.samples]),
        "worker_mib": over_time([worker for _, worker in memory.samples]),
    }


def over_time(samples: list[float]) -> dict[str, float]:
    """Mean of each fifth of the run; the first includes the start."""
    parts = np.array_split(np.array(samples), 5)
    return {f"{i}/5": round(float(part.mean()), 1) for i, part in enumerate(parts, 1) if len(part)}


def show(results: dict[str, Any]) -> None:
    table = Table("part", "what", "figure")
    for part in ("sleep", "clips", "many"):
        for name, value in results.get(part, {}).items():
            table.add_row(part, name, str(value))
    Console().print(table)


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--parts", default="sleep,clips,many")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="stm")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    path = args.folder / f"{date.today()}-batch-cpu.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in args.parts.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            work = {
                "sleep": measure_sleep,
                "clips": partial(measure_clips, args, Path(scratch)),
                "many": partial(measure_many, args, Path(scratch)),
            }[part]
            measured = work()
        # The environment is stored per part, since parts may be measured at different times.
        results[part] = {**measured, "environment": describe(torch.device("cpu"))}
    show(results)
    write_json(results, path)


if __name__ == "__main__":
    main()
