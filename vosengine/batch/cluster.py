"""Pool of workers in a Ray cluster, scheduled by Ray Data.

Ray Data holds the pool of actors, deals rows (one job each) out to them, replaces actors that died
and repeats their rows, without end. How often a job was begun, what is known of it, and whether to
stop, is at the desk: one more actor, on the driver's node, so that it lives as long as the driver.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DependencyError, DeviceError
from .actor import Actor, Desk
from .supervisor import TICK_S, Event
from .worker import Work

PATIENCE_S = 60.0  # for actors that have been asked to stop, from the last sign of any of them
ROWS = 10_000  # at most so many tasks of Ray; each has one job where there are not more jobs


def import_ray() -> Any:
    """Ray with Ray Data. Raises DependencyError."""
    # What its native half has to say is in its logs; at the terminal it is in the way.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise DependencyError(
            f'ray: cannot be imported ({error}); pip install "vosengine[ray]", here and on every '
            "machine of the cluster, or leave --ray out"
        ) from error
    return ray


class RayPool:
    """Processes jobs in actors of a cluster, as Supervisor does in processes.

    start    makes what does jobs in each actor, with its number of threads; pickled
    address  as `ray.init` takes it: HOST:PORT, "auto" for a cluster that runs here, "local" for one
             of this machine's cores that ends with the batch
    workers  how many actors at most; each has an equal share of the cluster's CPUs
    gpus     whether each has a share of the GPUs, where there are any
    lock     a file in the folder for the results, which every actor must see

    The rest is as in Supervisor. Raises DependencyError where Ray is not installed.
    """

    def __init__(
        self,
        start: Callable[[int], Work],
        *,
        address: str,
        workers: int,
        retries: int,
        gpus: bool,
        listen: Callable[[Event], None],
        lock: Path | None = None,
    ) -> None:
        self._ray = import_ray()
        self._start, self._lock, self._address = start, lock, address
        self._workers, self._retries, self._gpus = workers, retries, gpus
        self._listen = listen
        self._quit = False
        self._broken: Exception | None = None

    def work(self, jobs: Iterable[Any], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """See Supervisor. Raises DeviceError too, for a cluster that is not there or breaks."""
        listed = list(jobs)
        if not listed:
            return False
        ray = self._ray
        with _connected(ray, self._address):
            node = ray.get_runtime_context().get_node_id()
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
            desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here)
            desk = desk.remote(self._retries, self._workers)
            try:
                return self._follow(listed, desk, should_stop)
            except ray.exceptions.RayError as error:
                raise self._broke(error) from error
            finally:
                self._quit = True
                ray.kill(desk)

    def _follow(self, jobs: list[Any], desk: Any, should_stop: Callable[[], bool]) -> bool:
        ray = self._ray
        thread = threading.Thread(
            target=self._consume, args=(self._dataset(jobs, desk),), daemon=True
        )
        thread.start()
        stopping, fatal, answered, heard = False, None, 0, time.monotonic()
        while True:
            alive = thread.is_alive()
            if not stopping and (fatal or should_stop()):
                stopping = True
                ray.get(desk.stop.remote())
            notes, running = ray.get(desk.take.remote())
            heard = time.monotonic() if notes else heard
            for note in notes:
                fatal = fatal or note.error
                answered += note.kind != "frames"
                self._listen(Event(note.kind, jobs[note.index], note.value, note.tries))
            if not alive:
                break
            if stopping and (not running or time.monotonic() - heard > PATIENCE_S):
                break
            thread.join(TICK_S)
        if fatal is not None:
            raise fatal
        if stopping:
            return True
        if self._broken is not None:
            raise self._broke(self._broken) from self._broken
        if answered != len(jobs):
            raise DeviceError(
                f"ray: {len(jobs) - answered} of {len(jobs)} have no answer; the same command does "
                "them again"
            )
        return False

    def _dataset(self, jobs: list[Any], desk: Any) -> Any:
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        cpus, gpus = self._shares()
        lock = None if self._lock is None else str(self._lock.absolute())
        rows = [{"index": i, "job": pickle.dumps(job)} for i, job in enumerate(jobs)]
        dataset = data.from_items(rows, override_num_blocks=min(len(rows), ROWS))
        return dataset.map(
            Actor,
            fn_constructor_args=(desk, self._start, cpus, lock, __version__),
            compute=data.ActorPoolStrategy(
                min_size=1,
                max_size=self._workers,
                initial_size=self._workers,
                max_tasks_in_flight_per_actor=1,  # else a slow clip holds another one up
            ),
            num_cpus=cpus,
            num_gpus=gpus,
        )

    def _shares(self) -> tuple[int, float]:
        """CPUs and GPUs per actor, so that all of them can run at the same time."""
        found = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = [int(each.get("CPU", 0)) for each in found]
        cpus = max(cores, default=1)
        while cpus > 1 and sum(each // cpus for each in cores) < self._workers:
            cpus -= 1
        total = int(sum(each.get("GPU", 0) for each in found)) if self._gpus else 0
        return max(1, cpus), 1 / max(1, -(-self._workers // total)) if total else 0.0

    def _consume(self, dataset: Any) -> None:
        try:
            for _ in dataset.iter_rows():
                if self._quit:
                    return
        except self._ray.exceptions.RayError as error:
            self._broken = error

    def _broke(self, error: Exception) -> DeviceError:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else "no reason given"
        return DeviceError(
            f"ray: the cluster broke off ({type(error).__name__}: {said}); what is done is kept, "
            "the same command goes on from there"
        )


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Within the block Ray is connected; where it was before, it stays so."""
    if ray.is_initialized():
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    kinds = (signal.SIGINT, signal.SIGTERM) if main else ()
    handlers = {kind: signal.getsignal(kind) for kind in kinds}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="vosengine")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise DeviceError(
            f"ray: no cluster at {address} ({error}); wanted HOST:PORT of its head, auto for one "
            "that `ray start` began here, or local for this machine's cores"
        ) from error
    for kind, handler in handlers.items():  # Ray has one of its own for SIGTERM
        signal.signal(kind, handler)
    try:
        yield
    finally:
        ray.shutdown()
