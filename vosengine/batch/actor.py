"""Ray actors: workers that process jobs, and the coordinator they report to."""

from __future__ import annotations

import fcntl
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..allocation import keep_freed_memory
from ..errors import ConfigError, DeviceError, OutputError, VosError
from .supervisor import TICK_S
from .worker import FatalWorkError, Work, outcome_of


@dataclass(frozen=True)
class JobEvent:
    """An Event of the job with that index; `error` is set if it affects every job."""

    kind: str
    index: int
    value: Any = None
    tries: int = 1
    error: VosError | None = None


class Coordinator:
    """Coordinator: the state of all jobs. Methods are called from other processes, one at a time.

    retries  how often a job is retried after its process died
    workers  maximum number of processes
    """

    def __init__(self, retries: int, workers: int) -> None:
        self._retries, self._workers = retries, workers
        self._begun: Counter[int] = Counter()
        self._frames: Counter[int] = Counter()
        self._finished: set[int] = set()
        self._running: set[int] = set()
        self._crash_reasons: dict[int, str] = {}
        self._starts = 0
        self._stopping = False
        self._events: list[JobEvent] = []

    def starting(self) -> bool:
        """Whether a new process may create its worker."""
        self._starts += 1
        if self._starts > self._retries + self._workers:
            error = DeviceError(f"workers: {self._starts - 1} died when they started")
            self._events.append(JobEvent("frames", 0, 0, error=error))
            self._stopping = True
        return not self._stopping

    def ready(self) -> None:
        """Record that a process has created its worker."""
        self._starts = 0

    def begin(self, index: int) -> bool:
        """Whether a job that was assigned is to be processed."""
        if index in self._finished:  # Ray repeats all jobs of a block after a process died
            return False
        if self._stopping:
            self.finish(index, "stopped")
            return False
        if self._begun[index] > self._retries:
            reason = self._crash_reasons.get(index, "killed, or ended by itself")
            times = self._begun[index]
            self.finish(index, "failed", f"its process died {times} times, at last: {reason}")
            return False
        self._begun[index] += 1
        self._running.add(index)
        return True

    def add_frames(self, index: int, frames: int) -> bool:
        """Add to the frame count; return whether to stop."""
        self._frames[index] += frames
        return self._stopping

    def crashed(self, index: int, reason: str) -> None:
        """Record why the job's process is about to exit."""
        self._crash_reasons[index] = reason

    def finish(self, index: int, kind: str, value: Any = None, frames: int = 0) -> None:
        """Record the result of a job; kind and value are those of `serve`."""
        self._frames[index] += frames
        self._running.discard(index)
        if index in self._finished:
            return
        self._finished.add(index)
        error = None
        if kind == "fatal":
            kind, error, value, self._stopping = "stopped", value, None, True
        self._events.append(JobEvent(kind, index, value, max(1, self._begun[index]), error))

    def stop(self) -> None:
        """Start no more jobs."""
        self._stopping = True

    def take(self) -> tuple[list[JobEvent], int]:
        """Return the events since the last call, and the number of jobs in progress."""
        events = [JobEvent("frames", index, n) for index, n in self._frames.items() if n]
        events += self._events
        self._frames.clear()
        self._events = []
        return events, len(self._running)


class Actor:
    """Processes jobs one at a time; called by Ray Data with rows {"index", "job" (pickled)}.

    coordinator  Ray handle of the Coordinator
    start        creates the worker, given a number of threads
    lock         a file in the results folder; None: no lock
    version      version of the driver's vosengine
    """

    def __init__(
        self,
        coordinator: Any,
        start: Callable[[int], Work],
        threads: int,
        lock: str | None,
        version: str,
    ) -> None:
        self._coordinator, self._start, self._threads = coordinator, start, threads
        self._lock, self._version = lock, version
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["index"])
        ready = self._work is not None or self._create_worker()
        if ready and self._get(self._coordinator.begin.remote(index)):
            self._process(index, pickle.loads(row["job"]))
        return {"index": index}

    def _create_worker(self) -> bool:
        """Create the worker; return False if the coordinator does not allow it.

        This happens at the first row, not in the constructor: Ray restarts an actor whose
        constructor dies without limit.
        """
        if not self._get(self._coordinator.starting.remote()):
            return False
        keep_freed_memory()
        self._work = self._refusal() or self._start(self._threads)
        self._get(self._coordinator.ready.remote())
        return True

    def _refusal(self) -> Work | None:
        """Return work that reports why this machine cannot process jobs, None if it can."""
        node = os.uname().nodename
        error: VosError | None = None
        if self._version != __version__:
            error = ConfigError(
                f"ray: {node} has vosengine {__version__}, the driver {self._version}; install the "
                "same on every machine of the cluster"
            )
        elif self._lock is not None and not Path(self._lock).exists():
            error = OutputError(
                f"{Path(self._lock).parent}: {node} does not see this folder; wanted one that "
                "all machines of the cluster share, or an address such as s3://bucket/folder"
            )
        elif self._lock is not None:
            file = os.open(self._lock, os.O_RDONLY)
            fcntl.flock(file, fcntl.LOCK_SH)  # as long as this process lives
        if error is None:
            return None

        def refuse(job: Any, report: Any, should_stop: Any) -> None:
            raise FatalWorkError(error)

        return refuse

    def _process(self, index: int, job: Any) -> None:
        progress = _Progress(self._coordinator, index)
        assert self._work is not None
        try:
            kind, value = outcome_of(self._work, job, progress.report, progress.should_stop)
        except BaseException as error:  # noqa: BLE001 - reported, then the process ends
            self._get(self._coordinator.crashed.remote(index, f"{type(error).__name__}: {error}"))
            # The state of this process is unknown, so it exits and Ray starts another one.
            # If the error were raised instead, Ray Data would end the whole data set.
            os._exit(1)
        self._get(self._coordinator.finish.remote(index, kind, value, progress.frames))

    def _get(self, reference: Any) -> Any:
        import ray

        return ray.get(reference)


class _Progress:
    """Reports the frames of a job to the coordinator and asks whether to stop; never waits."""

    def __init__(self, coordinator: Any, index: int) -> None:
        self._coordinator, self._index = coordinator, index
        self.frames = 0  # not reported yet
        self._request: Any = None
        self._next_s = 0.0
        self._stopping = False

    def report(self, frames: int) -> None:
        self.frames += frames

    def should_stop(self) -> bool:
        import ray

        if self._request is not None and ray.wait([self._request], timeout=0)[0]:
            self._stopping = self._stopping or ray.get(self._request)
            self._request = None
        if self._request is None and time.monotonic() > self._next_s:
            self._request = self._coordinator.add_frames.remote(self._index, self.frames)
            self.frames, self._next_s = 0, time.monotonic() + TICK_S
        return self._stopping
