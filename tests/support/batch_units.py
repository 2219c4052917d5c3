"""What tests of `batch` run in its processes: work that sleeps, dies, or kills its parent."""

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
    """A job is a number of seconds. Returns when it began and ended, and in which process."""

    def __call__(self, job: float, report: Report, should_stop: Asked) -> dict[str, Any]:
        began = time.monotonic()
        time.sleep(job)
        return {"began": began, "ended": time.monotonic(), "process": os.getpid()}


class Scripted:
    """A job is (name, what is to happen, a folder for notes)."""

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
    """Cannot be made."""

    def __init__(self) -> None:
        os._exit(3)

    def __call__(self, job: Any, report: Report, should_stop: Asked) -> None:
        raise AssertionError


class Deadly:
    """As ClipWorker; when a clip named "b" has come to a frame for the first time, somebody dies.

    VICTIM in the environment: "worker", "parent", or "stop", the parent being asked to by SIGTERM;
    AT: the frame. NOTES: a folder for notes.
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
            while os.getppid() == parent:  # with its end the pipe's is closed
                time.sleep(0.01)
        if victim == "stop":
            os.kill(parent, signal.SIGTERM)
            time.sleep(2)  # until it was heard


def main() -> None:
    """`vosengine batch` with Deadly in its processes."""
    import vosengine.commands.batch as command
    from vosengine.cli.app import main as vosengine

    command.batch.__kwdefaults__["worker"] = Deadly
    sys.argv[0] = "vosengine"
    vosengine()


if __name__ == "__main__":
    import batch_units  # the name by which processes find what is in it

    batch_units.main()
