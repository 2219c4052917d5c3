"""States that may be written while a gradient is on its way through what was read from them."""

from __future__ import annotations

from typing import Any

import torch

from ..memory import AdaptiveBank, MemoryBank, Pages
from ..models.dmn_aoa.refinement import References
from ..models.method import State

HOLDERS = (State, MemoryBank, Pages, AdaptiveBank, References)


def fork(state: State) -> None:
    """Give the state copies of all its tensors, in place of those that were read.

    Banks are written in place; what a loss still needs of them for its gradient must not change.
    """
    _replace(state, torch.clone)


def blank(state: State) -> None:
    """Zeros in place of whatever was in new memory: a weight of 0 times NaN would be NaN."""
    _replace(state, torch.zeros_like)


def _replace(holder: Any, change: Any) -> None:
    for name, value in vars(holder).items():
        if isinstance(value, torch.Tensor):
            if change is torch.clone or value.is_floating_point():
                setattr(holder, name, change(value))
        elif isinstance(value, HOLDERS):
            _replace(value, change)
        elif isinstance(value, tuple) and any(isinstance(each, torch.Tensor) for each in value):
            setattr(holder, name, type(value)(*map(change, value)))
