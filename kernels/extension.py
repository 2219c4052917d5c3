"""Loading of the compiled extension `vosengine._C`, and reasons that C++ backends share.

`missing` is None, or the reason why the extension cannot be imported.
"""

from __future__ import annotations

from types import ModuleType

import torch

# Dtypes of C++ backends that compute in float32: half precision is converted to float32 and back.
COMPUTED_IN_FLOAT32 = torch.float32, torch.bfloat16, torch.float16

_C: ModuleType | None
try:
    from vosengine import _C  # type: ignore[no-redef]

    missing: str | None = None
except ImportError as error:
    _C = None
    # Not built, or built but not loadable (a shared library is missing): different remedies.
    absent = "cannot import name" in str(error)
    missing = "vosengine._C is not built" if absent else f"vosengine._C does not load: {error}"


def load() -> ModuleType:
    """Return the extension module.

    Raises  RuntimeError if it is not built or does not load.
    """
    if _C is None:
        raise RuntimeError(f"{missing}; `vosengine doctor` prints how to build it")
    return _C


def cpu_unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Return the unsupported reason that C++ backends share for these tensors, or None.

    Reasons: no extension, a tensor that is not on the CPU, a gradient.
    """
    if missing is not None:
        return missing
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"wants tensors on the CPU, given one on {tensor.device}"
    return gradient_unsupported(*tensors)


def gradient_unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Return the unsupported reason if autograd needs a gradient of any tensor, or None.

    Compiled backends implement no backward; the reference runs instead.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return "has no gradient, and an argument requires one"
    return None
