"""Pool of worker processes, which are replaced when they die."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from ..errors import DeviceError, VosError
from .worker import Work, serve

TICK_S = 0.2  # interval between checks for a stop request
PATIENCE_S = 10.0  # how long a process may take to exit


@dataclass
class Task:
    """A job, and how many processes died while processing it."""

    job: Any
    deaths: int = 0


@dataclass(frozen=True)
class Event:
    """Progress or result of a job.

    kind   "frames", "done", "failed" (given up) or "stopped"
    job    the job
    value  "frames": the number of frames; "done": the worker's facts; "failed": the error text
    tries  how often the job was started, if it has ended
    """

    kind: str
    job: Any
    value: Any = None
    tries: int = 1


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task | None = None
    ready: bool = False
    crash_reason: str = ""


class Supervisor:
    """Processes jobs in a pool of processes.

    start    creates the worker in each process; processes are spawned, so it must be picklable
    workers  maximum number of processes
    retries  how often a job is retried after its process died
    listen   called with every Event
    lock     a file on which every process holds a shared lock while it lives
    """

    def __init__(
        self,
        start: Callable[[], Work],
        *,
        workers: int,
        retries: int,
        listen: Callable[[Event], None],
        lock: Path | None = None,
    ) -> None:
        self._start, self._lock = start, lock
        self._max_workers, self._retries, self._listen = workers, retries, listen
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []
        self._waiting: deque[Task] = deque()
        self._failed_starts = 0
        self._stopping = False
        self._fatal: VosError | None = None

    def work(self, jobs: Iterable[Any], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Process all jobs; return True if stopped before the end.

        When stopped, jobs in progress save their state first.

        Raises  the VosError that affects every job, after all other jobs were stopped.
        """
        self._waiting.extend(Task(job) for job in jobs)
        try:
            while True:
                if should_stop():
                    self._stop()
                self._assign()
                if not any(worker.task for worker in self._workers):
                    break
                self._receive()
        finally:
            self._end()
        if self._fatal is not None:
            raise self._fatal
        return self._stopping

    def _assign(self) -> None:
        if self._stopping:
            return
        for worker in self._workers:
            if worker.task is None and self._waiting:
                self._send_next(worker)
        while self._waiting and len(self._workers) < self._max_workers:
            ours, theirs = self._context.Pipe()
            arguments = theirs, self._start, self._lock
            process = self._context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()  # otherwise the end of the process is not noticed
            worker = _Worker(process, ours)
            self._workers.append(worker)
            self._send_next(worker)

    def _send_next(self, worker: _Worker) -> None:
        task = worker.task = self._waiting.popleft()
        _send(worker, task.job)

    def _receive(self) -> None:
        by_connection: dict[Any, _Worker] = {w.connection: w for w in self._workers}
        for connection in wait(list(by_connection), TICK_S):
            worker = by_connection[connection]
            try:
                kind, value = worker.connection.recv()
            except (EOFError, OSError):  # the process is gone
                self._remove_dead(worker)
                continue
            self._handle(worker, kind, value)

    def _handle(self, worker: _Worker, kind: str, value: Any) -> None:
        if kind == "ready":
            worker.ready, self._failed_starts = True, 0
        elif kind == "crashed":
            worker.crash_reason = value
        elif worker.task is not None:
            task = worker.task
            tries = task.deaths + 1
            if kind == "frames":
                self._listen(Event(kind, task.job, value))
                return
            worker.task = None
            if kind == "done":
                self._listen(Event("done", task.job, value, tries))
            elif kind == "failed" and self._fatal is None:
                self._listen(Event("failed", task.job, value, tries))
            elif kind == "stopped" and not self._stopping:  # this process alone received SIGTERM
                self._waiting.appendleft(task)
                self._retire(worker)
            else:
                self._listen(Event("stopped", task.job, None, tries))
            if kind == "fatal":
                self._give_up(value)

    def _remove_dead(self, worker: _Worker) -> None:
        """Remove a dead process; retry its job or mark it failed."""
        self._retire(worker)
        task = worker.task
        if task is None:
            return
        reason = worker.crash_reason or _exit_reason(worker.process.exitcode)
        if not worker.ready:
            self._failed_starts += 1
            self._waiting.appendleft(task)
            if self._failed_starts > self._retries:
                self._give_up(
                    DeviceError(f"workers: {self._failed_starts} did not start: {reason}")
                )
            return
        task.deaths += 1
        if self._stopping:
            self._listen(Event("stopped", task.job, None, task.deaths))
        elif task.deaths > self._retries:
            text = f"its process died {task.deaths} times, at last: {reason}"
            self._listen(Event("failed", task.job, text, task.deaths))
        else:
            self._waiting.append(task)  # last in the queue: this job may be the cause

    def _retire(self, worker: _Worker) -> None:
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)

    def _give_up(self, error: VosError) -> None:
        self._fatal = self._fatal or error
        self._stop()

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            for worker in self._workers:
                _send(worker, None)

    def _end(self) -> None:
        """End all processes; kill those that still have a job (after a second Ctrl-C)."""
        for worker in self._workers:
            if worker.task is not None:
                worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(PATIENCE_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()


def _send(worker: _Worker, message: Any) -> None:
    try:
        worker.connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        return  # the process is gone; the loop notices the closed pipe


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
