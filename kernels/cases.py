"""Test cases of an op: a name and a function that makes the arguments.

Every `kernels/<op>/cases.py` defines CASES. The parity tests, the benchmark and the self-test of
`vosengine doctor` all use that list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Make = Callable[[torch.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One call of an op.

    make   takes a CPU generator and returns the keyword arguments, on the CPU, floats in float32
    bench  True for a shape of real use (480p): timed, and left out of the quick parity test
    """

    name: str
    make: Make
    bench: bool = False

    def arguments(
        self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Any]:
        """Make the arguments on a device, floating tensors cast to dtype; strides are kept."""

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        made: dict[str, Any] = map_tensors(cast, self.make(torch.Generator().manual_seed(seed)))
        return made


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], arguments: Any) -> Any:
    """Apply a function to every tensor of nested dicts and tuples; other values are kept."""
    if isinstance(arguments, torch.Tensor):
        return change(arguments)
    if isinstance(arguments, dict):
        return {name: map_tensors(change, value) for name, value in arguments.items()}
    if isinstance(arguments, tuple):
        return tuple(map_tensors(change, value) for value in arguments)
    return arguments
