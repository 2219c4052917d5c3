"""Worker process: processes jobs one at a time until its connection closes."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..allocation import keep_freed_memory
from ..errors import VosError

Work = Callable[[Any, Callable[[int], None], Callable[[], bool]], Any]
"""A worker: called as work(job, report, should_stop).

job          picklable
report       called with the number of frames processed since the last call
should_stop  stop_requests before every frame; True ends the job
returns      picklable facts about the job; None if it was stopped

Called again with a job that was stopped, or whose process died, it processes what is left."""


class FatalWorkError(Exception):
    """Raised by a worker for an error that affects every job; `error` has the cause."""

    def __init__(self, error: VosError) -> None:
        super().__init__(str(error))
        self.error = error


def serve(connection: Connection, start: Callable[[], Work], lock: Path | None) -> None:
    """Process jobs from a connection until it sends None or closes.

    start  creates the worker, once
    lock   a file on which this process holds a shared lock while it lives

    Messages sent are (kind, value): "ready"; "frames" with a count; and for each job "done" with
    its facts, "failed" with a text, "stopped", "fatal" with a VosError, or "crashed" with a
    text, after which the process ends.
    """
    stop_requests: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    signal.signal(signal.SIGTERM, lambda number, frame: stop_requests.append(number))
    keep_freed_memory()
    file = None if lock is None else lock.open("rb")
    if file is not None:
        fcntl.flock(file, fcntl.LOCK_SH)

    def should_stop() -> bool:
        # During a job only a request to stop, or the end of the pipe, can arrive.
        return bool(stop_requests) or connection.poll()

    def send(kind: str, value: Any = None) -> None:
        try:
            connection.send((kind, value))
        except (BrokenPipeError, ConnectionResetError):
            stop_requests.append(0)

    try:
        work = start()
        send("ready")
        while not stop_requests:
            job = connection.recv()
            if job is None:
                return
            if should_stop():
                send("stopped")
            else:
                send(*outcome_of(work, job, lambda frames: send("frames", frames), should_stop))
    except EOFError:
        return
    except BaseException as error:
        send("crashed", f"{type(error).__name__}: {error}")
        raise


def outcome_of(
    work: Work, job: Any, report: Callable[[int], None], should_stop: Callable[[], bool]
) -> tuple[str, Any]:
    """Process a job; return kind and value of its outcome, see `serve`."""
    try:
        facts = work(job, report, should_stop)
    except FatalWorkError as error:
        return "fatal", error.error
    except VosError as error:
        return "failed", f"{type(error).__name__}: {error}"
    return ("stopped", None) if facts is None else ("done", facts)
