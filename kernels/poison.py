"""Poisoned allocations: uninitialised memory is filled with NaN, so that reading it is detected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def poisoned(number: float = torch.nan, integer: int = 255) -> Iterator[None]:
    """Fill the results of torch.empty, empty_like, empty_strided and new_empty in a `with` block.

    number   value of floating tensors
    integer  value of integer tensors; bool tensors become True
    """

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned_make(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            if tensor.dtype == torch.bool:
                return tensor.fill_(True)
            return tensor.fill_(number if tensor.is_floating_point() else integer)

        return poisoned_make

    names = ("empty", "empty_like", "empty_strided")
    real = {name: getattr(torch, name) for name in names}
    new_empty = torch.Tensor.new_empty
    for name, make in real.items():
        setattr(torch, name, poison(make))
    torch.Tensor.new_empty = poison(new_empty)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.new_empty = new_empty  # type: ignore[method-assign]
        for name, make in real.items():
            setattr(torch, name, make)
