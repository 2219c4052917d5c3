"""Many clips: how processes share them out, what real clips gain by it, and memory over a long run.

    python bench/batch.py [--parts sleep,clips,many] [--data FOLDER] [--model stm] [--weights demo]
        [--clips 10] [--frames 15] [--many 1000] [--workers 2] [--folder bench/results]

sleep  jobs that take no CPU, done by 1 and by 8 processes: jobs a second while all are at work, and
       what share that is of 8 times one process's
clips  the first clips of a data set in DAVIS layout (without --data: drawn ones of 480x854), so
       many frames of each, by 1 process and by 2 that share the cores, in turn: frames a second
       from the first frame to the last, and with the start of the processes
many   drawn clips of 10 frames of 32x48 by --workers processes: resident memory of the driver and
       of the workers over the run, time per clip, and whether every mask is there

Writes <date>-batch-cpu.json, parts that were not run left as they were.
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
from environment import RESULTS, describe, write_json
from PIL import Image
from rich.console import Console
from rich.table import Table

from vosengine.batch.plan import BatchOptions
from vosengine.batch.pools import open_pool
from vosengine.batch.supervisor import Event
from vosengine.commands.batch import Tally, batch
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import write_labels

MIB = 1 << 20
SLEEP_S, SLEEPS = 0.5, 24  # a job, and how many for each process
CLIP_FRAMES = 10


class Sleeper:
    """In place of a model: a job is a number of seconds. Returns when it was, and who did it."""

    def __call__(self, job: float, report: Any, should_stop: Any) -> dict[str, Any]:
        began = time.monotonic()
        time.sleep(job)
        return {"began": began, "ended": time.monotonic(), "process": os.getpid()}


def sleeper(threads: int) -> Sleeper:
    return Sleeper()


def jobs_per_second(workers: int) -> float:
    """While all processes are at work: a job that only partly lies in that time counts in part."""
    done: list[dict[str, Any]] = []

    def listen(event: Event) -> None:
        if event.kind == "done":
            done.append(event.value)

    pool = open_pool(sleeper, workers=workers, retries=0, ray=None, device="cpu", listen=listen)
    pool.work([SLEEP_S] * (SLEEPS * workers), lambda: False)
    of = [[x for x in done if x["process"] == p] for p in {x["process"] for x in done}]
    assert len(of) == workers and len(done) == SLEEPS * workers
    start = max(min(x["began"] for x in each) for each in of)
    end = min(max(x["ended"] for x in each) for each in of)
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
    """Clips of one moving object as folders of PNG, with their first masks beside them. Only so
    many as differ are drawn; the others are links to their frames."""
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


def clips_of(given: argparse.Namespace, scratch: Path) -> tuple[str, ...]:
    """A manifest of the data set's first clips, or drawn clips."""
    if given.data is None:
        draw(scratch / "drawn", given.clips, (480, 854), given.frames)
        return (str(scratch / "drawn"),)
    images, masks = (given.data / name / "480p" for name in ("JPEGImages", "Annotations"))
    names = sorted(path.name for path in images.iterdir())[: given.clips]
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


def measure_clips(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    clips = clips_of(given, scratch)
    found: dict[str, Any] = {"model": given.model, "weights": given.weights}
    for workers in (1, 2):
        seen: list[tuple[float, int]] = []
        options = {"model": given.model, "weights": given.weights, "limit": given.frames}
        note = partial(_note, seen)
        summary = run_batch(clips, scratch / f"by{workers}", workers, note, **options)
        (began, first), (ended, last) = seen[0], seen[-1]
        found[str(workers)] = {
            "clips": summary["clips"],
            "frames": summary["frames"],
            "frames_per_s": round((last - first) / (ended - began), 3),
            "with_start": summary["frames_per_second"],
        }
    found["2_over_1"] = round(found["2"]["frames_per_s"] / found["1"]["frames_per_s"], 3)
    return found


def _note(seen: list[tuple[float, int]], tally: Tally) -> None:
    if tally.frames and (not seen or tally.frames > seen[-1][1]):
        seen.append((time.monotonic(), tally.frames))


class Memory(threading.Thread):
    """Resident MiB of this process, and of its greatest child, once a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self.done = threading.Event()

    def run(self) -> None:
        me = os.getpid()
        while not self.done.wait(1.0):
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
            held = [resident(int(child)) for child in children]
            self.samples.append((resident(me), max(held, default=0.0)))


def resident(process: int) -> float:
    """MiB; 0 of a process that is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def measure_many(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    draw(scratch / "many", given.many, (32, 48), CLIP_FRAMES)
    memory = Memory()
    memory.start()
    began = time.monotonic()
    options = {"model": given.model, "weights": given.weights, "size": 32}
    out = scratch / "out"
    summary = run_batch((str(scratch / "many"),), out, given.workers, lambda tally: None, **options)
    seconds = time.monotonic() - began
    memory.done.set()
    memory.join()
    masks = sum(len(list((out / row["name"]).glob("*.png"))) for row in summary["table"])
    assert masks == given.many * CLIP_FRAMES, masks
    times = [row["seconds"] * 1e3 for row in summary["table"]]
    p50, p95 = (round(float(np.percentile(times, each)), 1) for each in (50, 95))
    return {
        "clips": given.many,
        "masks": masks,
        "workers": given.workers,
        "seconds": round(seconds, 1),
        "ms_per_clip": {"p50": p50, "p95": p95},
        "driver_mib": over_time([driver for driver, _ in memory.samples]),
        "worker_mib": over_time([worker for _, worker in memory.samples]),
    }


def over_time(samples: list[float]) -> dict[str, float]:
    """The mean of each fifth of the run: the first has the start in it."""
    parts = np.array_split(np.array(samples), 5)
    return {f"{i}/5": round(float(part.mean()), 1) for i, part in enumerate(parts, 1) if len(part)}


def show(found: dict[str, Any]) -> None:
    table = Table("part", "what", "figure")
    for part in ("sleep", "clips", "many"):
        for name, value in found.get(part, {}).items():
            table.add_row(part, name, str(value))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="sleep,clips,many")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="stm")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    path = given.folder / f"{date.today()}-batch-cpu.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for part in given.parts.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            work = {
                "sleep": measure_sleep,
                "clips": partial(measure_clips, given, Path(scratch)),
                "many": partial(measure_many, given, Path(scratch)),
            }[part]
            measured = work()
        # A part has its own surroundings: it may have been measured another time.
        found[part] = {**measured, "environment": describe(torch.device("cpu"))}
    show(found)
    write_json(found, path)


if __name__ == "__main__":
    main()
