"""Work units for tests of `batch` processes: they sleep, die, or kill the parent."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[int], None]
Asked = Callable[[], bool]


class Sleeper:
    """Job: a number of seconds to sleep. Returns start and end times and the process id."""

    def __call__(self, job: float, report: Report, should_stop: Asked) -> dict[str, Any]:
        began = time.monotonic()
        time.sleep(job)
        return {"began": began, "ended": time.monotonic(), "process": os.getpid()}


class Scripted:
    """Job: (name, event to produce, folder for notes)."""

    def __call__(
        self, job: tuple[str, str, Path], report: Report, should_stop: Asked
    ) -> dict[str, Any] | None:
        from vosengine.batch.worker import CannotGoOnError
        from vosengine.errors import InputError, OutputError

        name, what, notes = job
        with (notes / name).open("a") as file:
            file.write("begun\n")
        first = (notes / name).read_text().count("begun") == 1
        report(1)
        if what == "poison":
            os._exit(7)
        if what == "killed once" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "ended once" and first:
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "raises":
            raise RuntimeError("not of ours")
        if what == "bad":
            raise InputError("mask: bad")
        if what == "full":
            raise CannotGoOnError(OutputError("disk: full"))
        if what == "long" or (what == "ended once" and first):
            while not should_stop():
                time.sleep(0.01)
            return None
        return {"name": name}


class Broken:
    """Worker whose constructor raises."""

    def __init__(self) -> None:
        os._exit(3)

    def __call__(self, job: Any, report: Report, should_stop: Asked) -> None:
        raise AssertionError


class Deadly:
    """ClipWorker that kills a process when clip "b" reaches a frame for the first time.

    Environment: VICTIM is "worker", "parent" (both killed), or "stop" (SIGTERM to the parent);
    AT is the frame; NOTES is a folder for notes.
    """

    def __init__(self, threads: int) -> None:
        from vosengine.batch.unit import ClipWorker

        self._worker = ClipWorker(threads)

    def __call__(self, job: Any, report: Report, should_stop: Asked) -> dict[str, Any] | None:
        notes = Path(os.environ["NOTES"])
        frames = 0

        def noted(count: int) -> None:
            nonlocal frames
            frames += count
            with (notes / job.name).open("a") as file:
                file.write(".")
            report(count)
            dead = notes / "dead"
            if job.name == "b" and frames == int(os.environ["AT"]) and not dead.exists():
                dead.touch()
                self._kill()

        return self._worker(job, noted, should_stop)

    def _kill(self) -> None:
        victim, parent = os.environ["VICTIM"], os.getppid()
        if victim == "worker":
            os.kill(os.getpid(), signal.SIGKILL)
        if victim == "parent":
            os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent:  # the pipe closes when the parent ends
                time.sleep(0.01)
        if victim == "stop":
            os.kill(parent, signal.SIGTERM)
            time.sleep(2)  # until the signal is handled


def main() -> None:
    """`vosengine batch` with Deadly in its processes."""
    import vosengine.commands.batch as command
    from vosengine.cli.app import main as vosengine

    command.batch.__kwdefaults__["worker"] = Deadly
    sys.argv[0] = "vosengine"
    vosengine()


if __name__ == "__main__":
    import batch_units  # the module name by which processes unpickle it

    batch_units.main()
