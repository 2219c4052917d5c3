"""Which backend of an op runs: the first that has no unsupported, or the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from types import MappingProxyType
from typing import Any, Protocol

import torch

from .spans import listened, span

BACKENDS = ("cuda", "triton", "cpu", "reference")

_asked: ContextVar[str] = ContextVar("vosengine_backend", default="auto")
_stand_ins: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar(
    "vosengine_stand_ins", default=MappingProxyType({})
)


class UnsupportedBackend(RuntimeError):
    """The backend that was asked for by name cannot take this call; the message says why."""


class Backend(Protocol):
    """A backend module: two functions with the reference's own signature."""

    def unsupported(self, *args: Any, **kwargs: Any) -> str | None: ...

    def run(self, *args: Any, **kwargs: Any) -> Any: ...


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Ask for one backend by name (or "auto") inside a `with` block, in this thread or task."""
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend {name!r}: wanted one of {', '.join((*BACKENDS, 'auto'))}")
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def stand_in(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let other functions, by name of the op, stand in for ops inside a `with` block, unchecked:
    for a tracer, which wants each op as one node of another language."""
    token = _stand_ins.set(functions)
    try:
        yield
    finally:
        _stand_ins.reset(token)


class Op:
    """One function with one contract and several backends.

    `reference` defines what is right and takes every valid call; `contract` has its signature and
    raises for every invalid one, before any backend is asked.

    Under torch's autocast, where some floats of a call have been narrowed and others not, all are
    taken in the widest of their dtypes; inside, autocast is off: an op says itself what it sums in.
    """

    def __init__(
        self,
        reference: Callable[..., Any],
        contract: Callable[..., Any],
        **backends: Backend,
    ) -> None:
        self.name = reference.__name__
        self.__doc__ = reference.__doc__
        self.reference = reference
        self.contract = contract
        self.backends = {name: backends[name] for name in BACKENDS if name in backends}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name in (stand_ins := _stand_ins.get()):
            return stand_ins[self.name](*args, **kwargs)
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    args, kwargs = _widened((args, kwargs))
                    return self(*args, **kwargs)
        if listened():
            with span(self.name):
                return self._run(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        self.contract(*args, **kwargs)
        asked = _asked.get()
        if asked == "reference":
            return self.reference(*args, **kwargs)
        for name, backend in self.backends.items():
            if asked in ("auto", name) and backend.unsupported(*args, **kwargs) is None:
                return backend.run(*args, **kwargs)
        if asked == "auto":
            return self.reference(*args, **kwargs)
        reasons = self.explain(*args, **kwargs)
        raise UnsupportedBackend(
            f"{self.name}: backend {asked!r} cannot take this call: {reasons[asked]}. "
            f"These can: {', '.join(n for n, reason in reasons.items() if reason is None)}."
        )

    def explain(self, *args: Any, **kwargs: Any) -> dict[str, str | None]:
        """For every backend, None if it can take this call, else the reason why it cannot."""
        self.contract(*args, **kwargs)
        reasons: dict[str, str | None] = dict.fromkeys(BACKENDS, f"{self.name} has none")
        reasons["reference"] = None
        for name, backend in self.backends.items():
            reasons[name] = backend.unsupported(*args, **kwargs)
        return reasons

    def __repr__(self) -> str:
        return f"<op {self.name}: {', '.join((*self.backends, 'reference'))}>"


def _widened(nested: Any) -> Any:
    """Tuples, lists and dicts with their floating tensors in the widest dtype among them."""
    dtypes = {x.dtype for x in _tensors_of(nested) if x.is_floating_point()}
    return _cast(nested, reduce(torch.promote_types, dtypes)) if len(dtypes) > 1 else nested


def _tensors_of(nested: Any) -> Iterator[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (tuple, list, dict)):
        for each in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors_of(each)


def _cast(nested: Any, dtype: torch.dtype) -> Any:
    if isinstance(nested, torch.Tensor):
        return nested.to(dtype) if nested.is_floating_point() else nested
    if isinstance(nested, dict):
        return {name: _cast(each, dtype) for name, each in nested.items()}
    return (
        type(nested)(_cast(x, dtype) for x in nested)
        if isinstance(nested, (tuple, list))
        else nested
    )
