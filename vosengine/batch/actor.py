"""Ray actors: workers that process jobs, and the coordinator (`Desk`) they report to."""

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
from .supervisor import TICK_S, describe
from .worker import CannotGoOnError, Work


@dataclass(frozen=True)
class Note:
    """As Event, of the job with that index; `error`: for which no job can be done."""

    kind: str
    index: int
    value: Any = None
    tries: int = 1
    error: VosError | None = None


class Desk:
    """Coordinator: the state of all jobs. Methods are called from other processes, one at a time.

    retries  how often a job is retried after its process died
    workers  maximum number of processes
    """

    def __init__(self, retries: int, workers: int) -> None:
        self._retries, self._workers = retries, workers
        self._begun: Counter[int] = Counter()
        self._frames: Counter[int] = Counter()
        self._answered: set[int] = set()
        self._running: set[int] = set()
        self._last_words: dict[int, str] = {}
        self._starts = 0
        self._stopping = False
        self._notes: list[Note] = []

    def starting(self) -> bool:
        """Whether a new process may create its worker."""
        self._starts += 1
        if self._starts > self._retries + self._workers:
            error = DeviceError(f"workers: {self._starts - 1} died when they started")
            self._notes.append(Note("frames", 0, 0, error=error))
            self._stopping = True
        return not self._stopping

    def ready(self) -> None:
        """Record that a process has created its worker."""
        self._starts = 0

    def begin(self, index: int) -> bool:
        """Whether a job that was assigned is to be processed."""
        if index in self._answered:  # its process died with others of the same row
            return False
        if self._stopping:
            self.answer(index, "stopped")
            return False
        if self._begun[index] > self._retries:
            words = self._last_words.get(index, "killed, or ended by itself")
            times = self._begun[index]
            self.answer(index, "failed", f"its process died {times} times, at last: {words}")
            return False
        self._begun[index] += 1
        self._running.add(index)
        return True

    def tell(self, index: int, frames: int) -> bool:
        """Add to the frame count; return whether to stop."""
        self._frames[index] += frames
        return self._stopping

    def crashed(self, index: int, words: str) -> None:
        """Record why the job's process is about to exit."""
        self._last_words[index] = words

    def answer(self, index: int, kind: str, value: Any = None, frames: int = 0) -> None:
        """Record the result of a job, in the terms of `serve`."""
        self._frames[index] += frames
        self._running.discard(index)
        if index in self._answered:
            return
        self._answered.add(index)
        error = None
        if kind == "fatal":
            kind, error, value, self._stopping = "stopped", value, None, True
        self._notes.append(Note(kind, index, value, max(1, self._begun[index]), error))

    def stop(self) -> None:
        """Begin no more jobs."""
        self._stopping = True

    def take(self) -> tuple[list[Note], int]:
        """Return the notes since the last call, and the number of jobs in progress."""
        notes = [Note("frames", index, n) for index, n in self._frames.items() if n]
        notes += self._notes
        self._frames.clear()
        self._notes = []
        return notes, len(self._running)


class Actor:
    """Processes jobs one at a time; called by Ray Data with rows {"index", "job" (pickled)}.

    desk     the handle of the desk
    start    makes what does jobs, with a number of threads
    lock     a file in the folder for the results
    version  of the driver's vosengine
    """

    def __init__(
        self,
        desk: Any,
        start: Callable[[int], Work],
        threads: int,
        lock: str | None,
        version: str,
    ) -> None:
        self._desk, self._start, self._threads = desk, start, threads
        self._path, self._version = lock, version
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["index"])
        if (self._work is not None or self._begin()) and self._get(self._desk.begin.remote(index)):
            self._do(index, pickle.loads(row["job"]))
        return {"index": index}

    def _begin(self) -> bool:
        """Make what does jobs: at the first row, for Ray would make an actor that dies before that
        for ever."""
        if not self._get(self._desk.starting.remote()):
            return False
        keep_freed_memory()
        self._work = self._refused() or self._start(self._threads)
        self._get(self._desk.ready.remote())
        return True

    def _refused(self) -> Work | None:
        """Return work that reports why this machine cannot process jobs, None if it can."""
        node = os.uname().nodename
        error: VosError | None = None
        if self._version != __version__:
            error = ConfigError(
                f"ray: {node} has vosengine {__version__}, the driver {self._version}; install the "
                "same on every machine of the cluster"
            )
        elif self._path is not None and not Path(self._path).exists():
            error = OutputError(
                f"{Path(self._path).parent}: {node} does not see this folder; wanted one that "
                "all machines of the cluster share, or an address such as s3://bucket/folder"
            )
        elif self._path is not None:
            file = os.open(self._path, os.O_RDONLY)
            fcntl.flock(file, fcntl.LOCK_SH)  # as long as this process lives
        if error is None:
            return None

        def refuse(job: Any, report: Any, should_stop: Any) -> None:
            raise CannotGoOnError(error)

        return refuse

    def _do(self, index: int, job: Any) -> None:
        line = _Line(self._desk, index)
        assert self._work is not None
        kind: str
        value: Any
        try:
            value = self._work(job, line.report, line.should_stop)
            kind = "stopped" if value is None else "done"
        except CannotGoOnError as error:
            kind, value = "fatal", error.error
        except VosError as error:
            kind, value = "failed", describe(error)
        except BaseException as error:  # noqa: BLE001 - told to the desk, and the process ends
            self._get(self._desk.crashed.remote(index, f"{type(error).__name__}: {error}"))
            # A process in an unknown state does no further job: Ray puts another in its place.
            # Were the error raised, Ray Data would end the whole data set.
            os._exit(1)
        self._get(self._desk.answer.remote(index, kind, value, line.frames))

    def _get(self, reference: Any) -> Any:
        import ray

        return ray.get(reference)


class _Line:
    """From a job to the desk: frames that were answered, and whether to stop, without waiting."""

    def __init__(self, desk: Any, index: int) -> None:
        self._desk, self._index = desk, index
        self.frames = 0  # not told yet
        self._asked: Any = None
        self._next = 0.0
        self._stopping = False

    def report(self, frames: int) -> None:
        self.frames += frames

    def should_stop(self) -> bool:
        import ray

        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            self._stopping = self._stopping or ray.get(self._asked)
            self._asked = None
        if self._asked is None and time.monotonic() > self._next:
            self._asked = self._desk.tell.remote(self._index, self.frames)
            self.frames, self._next = 0, time.monotonic() + TICK_S
        return self._stopping
