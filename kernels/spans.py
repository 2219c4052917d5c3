"""Named spans: a hook through which profilers follow ops and steps, per thread or asyncio task."""

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
    """Run every span inside a `with` block within the context manager `around(name)`.

    Spans are every op, a Segmenter's "step", "proposals", "encode", "segment" and "remember", and
    the parts of a method that its paper names. `listen(torch.profiler.record_function)` shows them
    in torch's profiler, `listen(torch.cuda.nvtx.range)` in Nsight Systems. Captured graphs are not
    replayed meanwhile, as they contain no spans.
    """
    token = _around.set(around)
    try:
        yield
    finally:
        _around.reset(token)


def listened() -> bool:
    """Return whether a listener is active in this thread or task."""
    return _around.get() is not None


def span(name: str) -> AbstractContextManager[object]:
    """Return a context manager that runs its block as a span of that name."""
    around = _around.get()
    return nullcontext() if around is None else around(name)


def spanned(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that each of its calls is a span of that name."""

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
