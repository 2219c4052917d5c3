"""Pool of workers in a Ray cluster, scheduled by Ray Data.

Ray Data holds the pool of actors, assigns rows (one job each) to them, replaces actors that died
and repeats their rows, without a limit. The Coordinator counts the attempts of each job, keeps its
state and says whether to stop: it is one more actor, on the driver's node, so that it lives as long
as the driver.
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
from .actor import Actor, Coordinator
from .supervisor import TICK_S, Event
from .worker import Work

PATIENCE_S = 60.0  # without an event of any actor, after a request to stop
BLOCKS = 10_000  # maximum number of Ray tasks; with more jobs, several jobs share a task


def import_ray() -> Any:
    """Import Ray with Ray Data. Raises DependencyError if it cannot be imported."""
    # Messages of its C++ part stay in its log files, off the terminal.
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

    start    creates the worker in each actor, given its number of threads; pickled
    address  as in `ray.init`: HOST:PORT, "auto" for the cluster on this machine, "local" for a new
             one of this machine's cores that ends with the batch
    workers  maximum number of actors; each has an equal share of the cluster's CPUs
    gpus     whether each actor has a share of the GPUs, if there are any
    lock     a file in the results folder, which every actor must see

    Other arguments are those of Supervisor. Raises DependencyError if Ray is not installed.
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
        """See Supervisor. Also raises DeviceError if the cluster cannot be reached or fails."""
        all_jobs = list(jobs)
        if not all_jobs:
            return False
        ray = self._ray
        with _connected(ray, self._address):
            node = ray.get_runtime_context().get_node_id()
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
            coordinator = ray.remote(Coordinator).options(num_cpus=0, scheduling_strategy=here)
            coordinator = coordinator.remote(self._retries, self._workers)
            try:
                return self._follow(all_jobs, coordinator, should_stop)
            except ray.exceptions.RayError as error:
                raise self._cluster_error(error) from error
            finally:
                self._quit = True
                ray.kill(coordinator)

    def _follow(self, jobs: list[Any], coordinator: Any, should_stop: Callable[[], bool]) -> bool:
        ray = self._ray
        thread = threading.Thread(
            target=self._consume, args=(self._dataset(jobs, coordinator),), daemon=True
        )
        thread.start()
        stopping, fatal, answered, last_event_s = False, None, 0, time.monotonic()
        while True:
            alive = thread.is_alive()
            if not stopping and (fatal or should_stop()):
                stopping = True
                ray.get(coordinator.stop.remote())
            events, running = ray.get(coordinator.take.remote())
            last_event_s = time.monotonic() if events else last_event_s
            for event in events:
                fatal = fatal or event.error
                answered += event.kind != "frames"
                self._listen(Event(event.kind, jobs[event.index], event.value, event.tries))
            if not alive:
                break
            if stopping and (not running or time.monotonic() - last_event_s > PATIENCE_S):
                break
            thread.join(TICK_S)
        if fatal is not None:
            raise fatal
        if stopping:
            return True
        if self._broken is not None:
            raise self._cluster_error(self._broken) from self._broken
        if answered != len(jobs):
            raise DeviceError(
                f"ray: {len(jobs) - answered} of {len(jobs)} clips have no result; run the same "
                "command again to process them"
            )
        return False

    def _dataset(self, jobs: list[Any], coordinator: Any) -> Any:
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        cpus, gpus = self._shares()
        lock = None if self._lock is None else str(self._lock.absolute())
        rows = [{"index": i, "job": pickle.dumps(job)} for i, job in enumerate(jobs)]
        dataset = data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
        return dataset.map(
            Actor,
            fn_constructor_args=(coordinator, self._start, cpus, lock, __version__),
            compute=data.ActorPoolStrategy(
                min_size=1,
                max_size=self._workers,
                initial_size=self._workers,
                max_tasks_in_flight_per_actor=1,  # otherwise a slow clip delays another one
            ),
            num_cpus=cpus,
            num_gpus=gpus,
        )

    def _shares(self) -> tuple[int, float]:
        """CPUs and GPUs per actor, so that all of them can run at the same time."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in nodes]
        cpus = max(cores, default=1)
        while cpus > 1 and sum(count // cpus for count in cores) < self._workers:
            cpus -= 1
        total = int(sum(node.get("GPU", 0) for node in nodes)) if self._gpus else 0
        return max(1, cpus), 1 / max(1, -(-self._workers // total)) if total else 0.0

    def _consume(self, dataset: Any) -> None:
        try:
            for _ in dataset.iter_rows():
                if self._quit:
                    return
        except self._ray.exceptions.RayError as error:
            self._broken = error

    def _cluster_error(self, error: Exception) -> DeviceError:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else "no reason given"
        return DeviceError(
            f"ray: the cluster failed ({type(error).__name__}: {reason}); finished clips are kept; "
            "run the same command again to continue"
        )


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to Ray within the block; an existing connection is used and kept."""
    if ray.is_initialized():
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if main else ()
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="vosengine")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise DeviceError(
            f"ray: no cluster at {address} ({error}); wanted HOST:PORT of its head, auto for one "
            "started here by `ray start`, or local for this machine's cores"
        ) from error
    for number, handler in handlers.items():  # ray.init replaces the handler of SIGTERM
        signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()
