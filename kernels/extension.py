"""The compiled extension, or the reason why there is none: absence is a fact, not a crash."""

from __future__ import annotations

from types import ModuleType

import torch

# What a C++ backend takes that computes in float32: half precision is converted to and fro.
COMPUTED_IN_FLOAT32 = torch.float32, torch.bfloat16, torch.float16

_C: ModuleType | None
try:
    from vosengine import _C  # type: ignore[no-redef]

    missing: str | None = None
except ImportError as error:
    _C = None
    # Absent, or there and broken (a library that it needs is missing): the two have other cures.
    absent = "cannot import name" in str(error)
    missing = "vosengine._C is not built" if absent else f"vosengine._C does not load: {error}"


def load() -> ModuleType:
    """The extension; raises RuntimeError where it is missing."""
    if _C is None:
        raise RuntimeError(f"{missing}; `vosengine doctor` says how to get it")
    return _C


def cpu_unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Why the C++ backend cannot take these tensors, as far as every op shares the reason."""
    if missing is not None:
        return missing
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"wants tensors on the CPU, given one on {tensor.device}"
    return gradient_unsupported(*tensors)


def gradient_unsupported(*tensors: torch.Tensor | None) -> str | None:
    """No compiled backend has a gradient: where one is wanted, the reference runs."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return "has no gradient, and an argument requires one"
    return None
