"""torch.compile with a time limit and its compile time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch


class CompileTookTooLong(BaseException):
    """The time limit has passed. A BaseException, so that the compiler does not catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise CompileTookTooLong in the block after that many seconds; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("time_limit: wanted the main thread, which receives the alarm")

    def over(_: int, __: FrameType | None) -> None:
        raise CompileTookTooLong(f"torch.compile was not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Compiled:
    """Function compiled by torch.compile for the shapes of its first call only.

    seconds  of the first call, including compilation; None before it
    """

    def __init__(
        self,
        function: Callable[..., Any],
        limit: float,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> None:
        torch.compiler.reset()  # forgets other shapes, which would make shapes dynamic
        self.call = wrap(torch.compile(function, dynamic=False))
        self.limit = limit
        self.seconds: float | None = None

    def __call__(self, **arguments: Any) -> Any:
        if self.seconds is not None:
            return self.call(**arguments)
        start = time.perf_counter()
        with time_limit(self.limit):
            outcome = self.call(**arguments)
        self.seconds = round(time.perf_counter() - start, 1)
        return outcome
