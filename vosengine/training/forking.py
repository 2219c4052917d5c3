"""Copies of a state's tensors, so that in-place writes do not break the backward pass."""

from __future__ import annotations

from typing import Any

import torch

from ..memory import AdaptiveBank, MemoryBank, Pages
from ..models.dmn_aoa.refinement import References
from ..models.method import State

HOLDERS = (State, MemoryBank, Pages, AdaptiveBank, References)


def fork(state: State) -> None:
    """Replace all tensors of a state by copies.

    Banks are written in place; the tensors that autograd saved for the backward pass must not
    change.
    """
    _replace(state, torch.clone)


def blank(state: State) -> None:
    """Zero the floating-point tensors of a new state: uninitialised NaN times a weight of 0 is
    NaN."""
    _replace(state, torch.zeros_like)


def _replace(holder: Any, change: Any) -> None:
    for name, value in vars(holder).items():
        if isinstance(value, torch.Tensor):
            if change is torch.clone or value.is_floating_point():
                setattr(holder, name, change(value))
        elif isinstance(value, HOLDERS):
            _replace(value, change)
        elif isinstance(value, tuple) and any(isinstance(item, torch.Tensor) for item in value):
            setattr(holder, name, type(value)(*map(change, value)))
