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
"""Does a job, which may be pickled; calls its second argument with the number of frames done since
the last call; asks its third one before every frame, and ends where that says True. Returns facts
about the job, which may be pickled, or None where it was ended. It does what is left of a job that
was ended, or whose process died, when it is called with it again."""


class CannotGoOnError(Exception):
    """Raised by work for an error that affects every job; `error` has the cause."""

    def __init__(self, error: VosError) -> None:
        super().__init__(str(error))
        self.error = error


def serve(connection: Connection, start: Callable[[], Work], lock: Path | None) -> None:
    """Take jobs from a connection and answer, until there is None or nobody at the other end.

    start  makes what does them, once
    lock   a file that is locked, shared, as long as this process lives

    Answers are (kind, value): "ready"; "frames", how many; and for each job "done" with its facts,
    "failed" with a VosError, "stopped", "fatal" with a VosError, or "crashed" with a text, after
    which the process ends.
    """
    asked: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all: one decides
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    keep_freed_memory()
    file = None if lock is None else lock.open("rb")
    if file is not None:
        fcntl.flock(file, fcntl.LOCK_SH)

    def should_stop() -> bool:
        # While a job is on its way nothing comes but the request to stop, or the end of the pipe.
        return bool(asked) or connection.poll()

    def send(kind: str, value: Any = None) -> None:
        try:
            connection.send((kind, value))
        except (BrokenPipeError, ConnectionResetError):
            asked.append(0)

    try:
        work = start()
        send("ready")
        while not asked:
            job = connection.recv()
            if job is None:
                return
            send(*_answer(work, job, lambda frames: send("frames", frames), should_stop))
    except EOFError:
        return
    except BaseException as error:
        send("crashed", f"{type(error).__name__}: {error}")
        raise


def _answer(
    work: Work, job: Any, report: Callable[[int], None], should_stop: Callable[[], bool]
) -> tuple[str, Any]:
    if should_stop():
        return "stopped", None
    try:
        facts = work(job, report, should_stop)
    except CannotGoOnError as error:
        return "fatal", error.error
    except VosError as error:
        return "failed", error
    return ("stopped", None) if facts is None else ("done", facts)
