"""CUDA graphs on a CPU: records torch operators as they run, and replays them in place.

Synchronising with the device, or copying values from the host, fails as in a capture on a GPU.
Compiled kernels are not recorded: ops must run on the reference backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "masked_select")
FROM_HOST = ("lift_fresh", "lift_fresh_copy")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        if name in FROM_HOST:  # a scalar becomes a kernel argument
            assert args[0].ndim == 0, f"{name} brings numbers from the host"
        outcome = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, outcome))
        return outcome


class RecordedGraph:
    """Stand-in for runtime.graphs.CudaGraph. Capture runs the work, so the first replay does
    nothing."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._done = False

    def capture(self, work: Callable[[], T]) -> T:
        with _Recorder() as recorder:
            outcome = work()
        self._calls, self._done = recorder.calls, True
        return outcome

    def replay(self) -> None:
        if self._done:
            self._done = False
            return
        for function, args, kwargs, before in self._calls:
            after = function(*args, **kwargs)
            inputs = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
            for old, new in zip(_tensors(before), _tensors(after), strict=True):
                if old.untyped_storage().data_ptr() not in inputs:  # neither a view nor in place
                    old.copy_(new)


def _tensors(nested: Any) -> list[torch.Tensor]:
    """Return all tensors except constant weights packed for oneDNN, which have no storage."""
    leaves = (leaf for leaf in tree_leaves(nested) if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in leaves if leaf.layout == torch.strided]
