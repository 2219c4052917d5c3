"""torch's settings that belong to the caller, set aside while the engine computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Condition, Lock, get_ident
from typing import Generic, TypeVar

import torch

V = TypeVar("V")


class ProcessSetting(Generic[V]):
    """A setting of torch that is one for all threads of the process.

    Threads that hold it at one value are inside together: the first one in sets it, the last one
    out puts the caller's value back. A thread that wants another value waits until they are out,
    and whoever comes after it waits behind it. So what a thread computes while it holds a value
    does not depend on the others, and none of them waits for ever.
    """

    def __init__(self, read: Callable[[], V], write: Callable[[V], None]) -> None:
        self._read, self._write = read, write
        self._line = Lock()  # held by the one thread that is next to come in
        self._left = Condition()
        self._inside: list[int] = []  # threads, as often as they came in
        self._value: V  # while anyone is inside, and what the caller had
        self._callers: V

    @contextmanager
    def held(self, value: V) -> Iterator[None]:
        """Raises  RuntimeError where this thread already holds another value."""
        if get_ident() in self._inside:
            self._enter(value)
        else:
            with self._line:
                self._enter(value)
        try:
            yield
        finally:
            with self._left:
                self._inside.remove(get_ident())
                if not self._inside:
                    if self._callers != value:
                        self._write(self._callers)
                    self._left.notify()

    def _enter(self, value: V) -> None:
        with self._left:
            if self._inside and self._value != value:
                if get_ident() in self._inside:
                    raise RuntimeError(f"wanted {value} inside of {self._value}, in one thread")
                self._left.wait_for(lambda: not self._inside)
            if not self._inside:
                self._callers, self._value = self._read(), value
                if self._callers != value:
                    self._write(value)
            self._inside.append(get_ident())


_default_dtype = ProcessSetting(torch.get_default_dtype, torch.set_default_dtype)


@contextmanager
def own_settings() -> Iterator[None]:
    """Within the block, or the function that this decorates, torch is set as when it was imported,
    but records no gradients: no inference mode, no autocast, float32 and the CPU as defaults.

    What the engine keeps from step to step would else depend on where it was made: tensors of an
    inference mode may not be written to outside of it, and autocast and another default dtype give
    other labels. Measured: 18 microseconds where there is nothing to set aside.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())  # after it, for leaving an inference mode records
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_default_dtype.held(torch.float32))
        yield
