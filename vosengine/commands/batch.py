"""`vosengine batch`: process many clips in parallel, one result folder per clip."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..batch.plan import BatchOptions, plan, unfinished
from ..batch.pools import open_pool
from ..batch.results import Results, results_at
from ..batch.stores import open_place
from ..batch.supervisor import Event
from ..batch.unit import ClipWorker, Job
from ..batch.worker import Work
from ..errors import OutputError, StorageError, VosError

TABLE, FAILED = "batch.json", "failed.jsonl"
STATES = ("done", "failed", "skipped", "stopped", "waiting")  # of clips


@dataclass
class Tally:
    """Progress of a batch: the number of `frames` processed, and one of `rows` per clip."""

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

    All inputs are checked before the first clip starts. Clips that an earlier batch finished are
    skipped; clips that it started continue from their last saved state.

    report       called after every frame and every clip
    should_stop  asked several times a second; True ends the batch, which can be continued later
    worker       creates the worker, once in each process, given a number of threads
    returns      the summary as written: clips with their states, counts, times, and "complete"

    Raises  InputError, ConfigError, WeightsError, StorageError or OutputError before the first clip
            starts, DependencyError if Ray is wanted and missing; later OutputError if the disk is
            full, StorageError for an address, and DeviceError. Finished clips are kept.
    """
    results = results_at(open_place(options.out))
    results.check()
    jobs = plan(options)
    tally: Tally | None = None

    def listen(event: Event) -> None:
        assert tally is not None
        _record(tally, results, report, event)

    pool = open_pool(
        worker,
        workers=options.workers,
        retries=options.retries,
        ray=options.ray,
        device=str(options.run.get("device", "auto")),
        listen=listen,
        lock=results.lock,
    )
    with results.hold():
        todo = unfinished(options, jobs, results)
        tally = Tally(_rows(jobs, todo, results))
        results.write(FAILED, "")
        report(tally)
        try:
            stopped = pool.work(todo, should_stop)
        except VosError:
            with suppress(OutputError, StorageError):  # the first error is reported
                _write_summary(tally, results, True)
            raise
        return _write_summary(tally, results, stopped)


def _rows(jobs: Sequence[Job], todo: Sequence[Job], results: Results) -> dict[str, dict[str, Any]]:
    new = {job.name for job in todo}
    skipped = [job for job in jobs if job.name not in new]
    counts = dict(zip((job.name for job in skipped), results.frames(skipped), strict=True))
    return {
        job.name: {
            "name": job.name,
            "source": job.options.source,
            "model": job.options.model,
            "state": "waiting" if job.name in new else "skipped",
            "frames": counts.get(job.name, 0),
            "seconds": 0.0,
        }
        for job in jobs
    }


def _record(tally: Tally, results: Results, report: Callable[[Tally], None], event: Event) -> None:
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
        results.append(FAILED, json.dumps(line) + "\n")
    report(tally)


def _write_summary(tally: Tally, results: Results, stopped: bool) -> dict[str, Any]:
    """Write the summary and return it. Raises OutputError or StorageError."""
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
    results.write(TABLE, json.dumps(summary, indent=1) + "\n")
    return summary
