"""Worker pools: processes of this machine, or actors of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from .supervisor import Event, Supervisor
from .worker import Work


class Pool(Protocol):
    def work(self, jobs: Iterable[Any], should_stop: Callable[[], bool]) -> bool:
        """Process all jobs; return True if stopped before the end. See Supervisor."""
        ...


def open_pool(
    start: Callable[[int], Work],
    *,
    workers: int,
    retries: int,
    ray: str | None,
    device: str,
    listen: Callable[[Event], None],
    lock: Path | None = None,
) -> Pool:
    """Open a pool of processes on this machine, or of actors in a cluster.

    start   creates the worker, once per process, given its number of threads
    ray     the address of the cluster; None: this machine
    device  of the jobs: "cpu", "cuda" or "auto"; in a cluster Ray assigns the GPUs

    Other arguments are those of Supervisor. Raises ConfigError, and DependencyError if Ray is
    missing.
    """
    if workers < 1 or retries < 0:
        raise ConfigError(
            f"workers: wanted 1 or more, and 0 or more retries; given {workers} and {retries}"
        )
    if ray is None:
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        begin = partial(start, threads)
        return Supervisor(begin, workers=workers, retries=retries, listen=listen, lock=lock)
    if ":" in device:
        raise ConfigError(
            f"device: {device}: Ray gives each worker its GPU; wanted auto, cpu or cuda"
        )
    from .cluster import RayPool

    return RayPool(
        start,
        address=ray,
        workers=workers,
        retries=retries,
        gpus=device != "cpu",
        listen=listen,
        lock=lock,
    )
