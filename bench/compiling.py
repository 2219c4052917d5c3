"""torch.compile with a limit of time and a note of how long it took."""

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
    """Not an Exception, so that the compiler's own handlers let it pass, like Ctrl-C."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises CompileTookTooLong in this block once it is over; only the main thread has alarms."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a time limit wants the main thread")

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
    """A function as torch.compile makes it, for the shapes of its first call alone.

    seconds  that the first call took, compiling included; None before it
    """

    def __init__(
        self,
        function: Callable[..., Any],
        limit: float,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> None:
        torch.compiler.reset()  # no memory of other shapes, which would be made dynamic
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
