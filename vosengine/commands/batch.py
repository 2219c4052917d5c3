"""`vosengine batch`: many clips, each to a folder of its own, by several processes."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..batch.plan import BatchOptions, plan, unfinished
from ..batch.supervisor import Event, Supervisor
from ..batch.unit import ClipWorker, Job, frame_count
from ..batch.worker import Work
from ..errors import ConfigError, OutputError, VosError
from ..files import cannot_write, write_whole
from ..video import prepare_output_folder

TABLE, FAILED, LOCK = "batch.json", "failed.jsonl", ".batch.lock"
STATES = ("done", "failed", "skipped", "stopped", "waiting")  # of clips
LOCK_WAIT_S = 60.0  # for the processes of a batch that was killed, which finish a frame


@dataclass
class Tally:
    """Where a batch is. `frames` were answered in it; `rows` are the clips of the table."""

    rows: dict[str, dict[str, Any]]
    frames: int = 0
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.counts = Counter(row["state"] for row in self.rows.values())

    def change(self, row: dict[str, Any], state: str) -> None:
        self.counts.update({row["state"]: -1, state: 1})
        row["state"] = state

    @property
    def frames_per_second(self) -> float:
        return self.frames / max(1e-9, time.monotonic() - self.began)


def batch(
    options: BatchOptions,
    *,
    report: Callable[[Tally], None] = lambda tally: None,
    should_stop: Callable[[], bool] = lambda: False,
    worker: Callable[[int], Work] = ClipWorker,
) -> dict[str, Any]:
    """Segment every clip into OUT/NAME, and write OUT/batch.json and OUT/failed.jsonl.

    All inputs are checked before the first clip is begun. What an earlier batch finished is
    skipped; what it began goes on from its last saved state.

    report       is called after every frame and every clip
    should_stop  is asked all the time; True ends the batch cleanly, to be gone on with later
    worker       made once in each process, with its number of threads
    returns      the summary, as written: the clips with their states, counts, times; "complete"

    Raises  InputError, ConfigError, WeightsError or OutputError before anything has begun; later
            OutputError for a full disk and DeviceError, with what was done intact.
    """
    if options.workers < 1 or options.retries < 0:
        raise ConfigError(
            f"workers: wanted 1 or more, and 0 or more retries; given {options.workers} and "
            f"{options.retries}"
        )
    jobs = plan(options)
    prepare_output_folder(options.out)
    with _locked(options.out):
        todo = unfinished(options, jobs)
        new = {job.name for job in todo}
        tally = Tally({job.name: _row(job, skipped=job.name not in new) for job in jobs})
        write_whole(options.out / FAILED, "")
        report(tally)
        threads = max(1, len(os.sched_getaffinity(0)) // options.workers)
        supervisor = Supervisor(
            partial(worker, threads),
            workers=options.workers,
            retries=options.retries,
            listen=partial(_note, tally, options.out, report),
            lock=options.out / LOCK,
        )
        try:
            stopped = supervisor.work(todo, should_stop)
        except VosError:
            with suppress(OutputError):  # the first error is the one to be told
                _sum_up(tally, options.out, True)
            raise
        return _sum_up(tally, options.out, stopped)


def _row(job: Job, *, skipped: bool) -> dict[str, Any]:
    return {
        "name": job.name,
        "source": job.options.source,
        "model": job.options.model,
        "state": "skipped" if skipped else "waiting",
        "frames": frame_count(job.folder) if skipped else 0,
        "seconds": 0.0,
    }


def _note(tally: Tally, out: Path, report: Callable[[Tally], None], event: Event) -> None:
    row = tally.rows[event.job.name]
    if event.kind == "frames":
        tally.frames += event.value
    else:
        tally.change(row, event.kind)
        row["tries"] = event.tries
    if event.kind == "done":
        row |= event.value
    if event.kind == "failed":
        row["error"] = event.value
        line = {name: row[name] for name in ("name", "source", "error", "tries")}
        try:
            with (out / FAILED).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(out / FAILED, error) from error
    report(tally)


def _sum_up(tally: Tally, out: Path, stopped: bool) -> dict[str, Any]:
    """The summary, written. Raises OutputError."""
    summary = {
        "vosengine": __version__,
        "complete": not stopped and not tally.counts["failed"],
        "clips": len(tally.rows),
        **{state: tally.counts[state] for state in STATES},
        "frames": tally.frames,
        "seconds": round(time.monotonic() - tally.began, 3),
        "frames_per_second": round(tally.frames_per_second, 2),
        "table": list(tally.rows.values()),
    }
    write_whole(out / TABLE, json.dumps(summary, indent=1) + "\n")
    return summary


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other batches out of a folder; its processes hold on to the lock as well, and so does
    one that is killed until the last of them has finished its frame."""
    with (out / LOCK).open("ab") as file:
        end = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise OutputError(
                        f"{out}: another batch is writing there; wait for it, or choose another "
                        "folder"
                    ) from error
                time.sleep(0.1)
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
