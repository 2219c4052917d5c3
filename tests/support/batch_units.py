"""Work units for tests of `batch` processes: they sleep, die, or kill the parent."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
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
        from vosengine.batch.worker import FatalWorkError
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
            raise FatalWorkError(OutputError("disk: full"))
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


def scripted(threads: int) -> Scripted:
    return Scripted()


def broken(threads: int) -> Broken:
    return Broken()


class Deadly:
    """ClipWorker that kills a process when clip "b" reaches a frame for the first time.

    victim  "worker", this process; "parent" of it; "driver"; "raylet", the parent of an actor;
            "stop", the driver being asked to by SIGTERM; "nobody"
    at      the frame, counted in this process
    notes   a folder for notes
    driver  the process that assigns the jobs
    """

    def __init__(self, threads: int, *, victim: str, at: int, notes: Path, driver: int) -> None:
        from vosengine.batch.unit import ClipWorker

        self._worker = ClipWorker(threads)
        self._victim, self._at, self._notes, self._driver = victim, at, notes, driver

    def __call__(self, job: Any, report: Report, should_stop: Asked) -> dict[str, Any] | None:
        frames = 0

        def noted(count: int) -> None:
            nonlocal frames
            frames += count
            with (self._notes / job.name).open("a") as file:
                file.write(".")
            report(count)
            dead = self._notes / "dead"
            if job.name == "b" and frames == self._at and not dead.exists():
                dead.touch()
                self._kill(should_stop)

        return self._worker(job, noted, should_stop)

    def _kill(self, should_stop: Asked) -> None:
        parent = os.getppid()
        if self._victim == "worker":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._victim == "parent":
            os.kill(parent, signal.SIGKILL)
            while not should_stop():  # its pipe closes when its last thread has ended
                time.sleep(0.01)
        if self._victim in ("driver", "raylet"):
            os.kill(self._driver if self._victim == "driver" else parent, signal.SIGKILL)
            time.sleep(60)  # this process is ended with it
        if self._victim == "stop":
            os.kill(self._driver, signal.SIGTERM)
            time.sleep(2)  # until it was heard


def deadly(victim: str, notes: Path) -> Callable[[int], Deadly]:
    """A factory of Deadly for the worker processes of this process, the driver."""
    at = 3 if victim == "raylet" else 4  # between two checkpoints
    return partial(Deadly, victim=victim, at=at, notes=notes, driver=os.getpid())


def main() -> None:
    """`vosengine` with Deadly in its processes: VICTIM NOTES, then the arguments."""
    import vosengine.commands.batch as command
    from vosengine.cli.app import main as vosengine

    command.batch.__kwdefaults__["worker"] = deadly(sys.argv[1], Path(sys.argv[2]))
    sys.argv[:3] = ["vosengine"]
    vosengine()


if __name__ == "__main__":
    import batch_units  # the module name by which processes unpickle it

    batch_units.main()
