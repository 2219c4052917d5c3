"""A hook for profilers: what runs says its name, to whoever listens in this thread or task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Around = Callable[[str], AbstractContextManager[object]]

_around: ContextVar[Around | None] = ContextVar("vosengine_around", default=None)


@contextmanager
def listen(around: Around) -> Iterator[None]:
    """Inside a `with` block, whatever has a name runs within `around(name)`: every op, a
    Segmenter's "step", "proposals", "encode", "segment" and "remember", and what a method calls by
    its paper's name. `listen(torch.profiler.record_function)` shows them in torch's profiler,
    `listen(torch.cuda.nvtx.range)` in NVIDIA's. Graphs are not replayed: they have no parts.
    """
    token = _around.set(around)
    try:
        yield
    finally:
        _around.reset(token)


def listened() -> bool:
    """Whether anybody listens."""
    return _around.get() is not None


def span(name: str) -> AbstractContextManager[object]:
    """What runs within the block has that name."""
    around = _around.get()
    return nullcontext() if around is None else around(name)


def spanned(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function: each of its calls is a span."""

    def decorate(call: Callable[P, T]) -> Callable[P, T]:
        @wraps(call)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            around = _around.get()
            if around is None:
                return call(*args, **kwargs)
            with around(name):
                return call(*args, **kwargs)

        return run

    return decorate
