"""Backend dispatch: an op runs on the first backend that supports the call, or on a requested one.

Backends are tried in the order of BACKENDS. A backend's `unsupported(...)` returns the unsupported
reason: why it cannot run the call, or None if it can.
"""

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
    """The backend requested by name does not support this call; the message gives the reason."""


class Backend(Protocol):
    """Backend module: two functions that are called as the reference is."""

    def unsupported(self, *args: Any, **kwargs: Any) -> str | None:
        """Return the reason why this backend cannot run the call, or None if it can."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the op; called only if `unsupported` returned None."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select the backend of every op inside a `with` block, in this thread or asyncio task.

    name    one of BACKENDS, or "auto" for the first that supports a call
    Raises  ValueError for another name. Inside, an op raises UnsupportedBackend if that backend
            does not support the call.
    """
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend {name!r}: wanted one of {', '.join((*BACKENDS, 'auto'))}")
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def stand_in(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace ops, by name, inside a `with` block; the contract is not checked.

    Used by the ONNX export, which traces each op as one node.
    """
    token = _stand_ins.set(functions)
    try:
        yield
    finally:
        _stand_ins.reset(token)


class Op:
    """Operator with one contract and several backends.

    reference  defines the result and accepts every valid call
    contract   has the same signature and raises for every invalid call, before dispatch
    backends   backend modules by name (see BACKENDS)

    Under torch.autocast all floating tensors of a call are promoted to the widest dtype among
    them, and autocast is disabled inside: the contract of an op states its accumulation dtype.
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
            f"{self.name}: backend {asked!r} does not support this call: {reasons[asked]}. "
            f"Supported by: {', '.join(n for n, reason in reasons.items() if reason is None)}."
        )

    def explain(self, *args: Any, **kwargs: Any) -> dict[str, str | None]:
        """Return the unsupported reason of every backend for this call; None if it is supported.

        Raises  what the contract raises for an invalid call.
        """
        self.contract(*args, **kwargs)
        reasons: dict[str, str | None] = {
            name: f"{self.name} has no {name} backend" for name in BACKENDS
        }
        reasons["reference"] = None
        for name, backend in self.backends.items():
            reasons[name] = backend.unsupported(*args, **kwargs)
        return reasons

    def __repr__(self) -> str:
        return f"<op {self.name}: {', '.join((*self.backends, 'reference'))}>"


def _widened(nested: Any) -> Any:
    """Promote the floating tensors of nested tuples, lists and dicts to their widest dtype."""
    dtypes = {x.dtype for x in _tensors_of(nested) if x.is_floating_point()}
    return _cast(nested, reduce(torch.promote_types, dtypes)) if len(dtypes) > 1 else nested


def _tensors_of(nested: Any) -> Iterator[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (tuple, list, dict)):
        for value in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors_of(value)


def _cast(nested: Any, dtype: torch.dtype) -> Any:
    if isinstance(nested, torch.Tensor):
        return nested.to(dtype) if nested.is_floating_point() else nested
    if isinstance(nested, dict):
        return {name: _cast(value, dtype) for name, value in nested.items()}
    return (
        type(nested)(_cast(value, dtype) for value in nested)
        if isinstance(nested, (tuple, list))
        else nested
    )
