"""Shared code of the GPU backends: the Triton import, unsupported reasons, tuning tables, streams.

If TRITON_INTERPRET=1 is set when a kernel is defined, Triton runs it on the CPU, in NumPy, and the
Triton backends support CPU tensors. This is for tests: it is thousands of times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch

from . import extension

__all__ = [
    "ELEMENTS",
    "INTERPRETED",
    "OLDEST",
    "capability",
    "cuda_unsupported",
    "for_chip",
    "missing",
    "on_its_device",
    "runs_on",
    "stream_of",
    "tl",
    "triton",
    "triton_unsupported",
]

T = TypeVar("T")

OLDEST = 80  # Triton's minimum: Ampere, the first with bfloat16 tensor cores

try:
    import triton
    import triton.language as tl

    missing: str | None = None
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ImportError as error:
    missing = f"Triton is not installed ({error}); CUDA builds of torch include it"
    INTERPRETED = False

    class _Absent:
        """Placeholder that lets modules with kernels be imported without Triton."""

        def jit(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
            return kernel

    triton = tl = _Absent()


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def capability(device: torch.device) -> int:
    """Return the compute capability as one number, 90 for sm_90; 80 for a CPU (emulation)."""
    if device.type != "cuda":
        return OLDEST
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


Run = TypeVar("Run", bound=Callable[..., Any])


def on_its_device(run: Run) -> Run:
    """Decorate a Triton backend's `run` to launch on the device of its first tensor argument.

    Triton itself launches on the current device.
    """

    @wraps(run)
    def guarded(*args: Any, **options: Any) -> Any:
        first = next(x for x in (*args, *options.values()) if isinstance(x, torch.Tensor))
        with torch.cuda.device(first.get_device()):  # -1 on a CPU: no device is set
            return run(*args, **options)

    return cast(Run, guarded)


def for_chip(table: Mapping[int, T], device: torch.device) -> T:
    """Return the entry of a tuning table for this device.

    table    entries by compute capability (80, 90, ...)
    returns  the entry of the greatest capability not above the device's, else of the smallest
    """
    chip = capability(device)
    return table[max((known for known in table if known <= chip), default=min(table))]


def triton_unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Return the unsupported reason that Triton backends share for these tensors, or None.

    Reasons: no Triton, a tensor on another device, a GPU older than OLDEST, a gradient.
    """
    if missing is not None:
        return missing
    wanted = "cpu" if INTERPRETED else "cuda"
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != wanted:
            where = "the CPU, in Triton's interpreter" if INTERPRETED else "an NVIDIA GPU"
            return f"wants tensors on {where}, given one on {tensor.device}"
        if wanted == "cuda" and torch.version.hip is not None:
            return "wants an NVIDIA GPU, and this torch is built for AMD's"
        if wanted == "cuda" and capability(tensor.device) < OLDEST:
            return f"wants sm_{OLDEST} or newer, given sm_{capability(tensor.device)}"
    return extension.gradient_unsupported(*tensors)


def cuda_unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Return the unsupported reason that CUDA backends share for these tensors, or None.

    Reasons: no extension or one without CUDA, a tensor on another device, a GPU that the
    extension is not compiled for, bfloat16 on a GPU older than OLDEST, a gradient.
    """
    if extension.missing is not None:
        return extension.missing
    compiled = extension.load()
    if not hasattr(compiled, "cuda_device_type"):
        return "vosengine._C is built without CUDA; `vosengine doctor` prints how to build it"
    wanted, archs = compiled.cuda_device_type(), compiled.cuda_archs()
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != wanted:
            return f"wants tensors on an NVIDIA GPU, given one on {tensor.device}"
        if wanted == "cuda" and torch.version.hip is not None:
            return "wants an NVIDIA GPU, and this torch is built for AMD's"
        chip = capability(tensor.device)
        if wanted == "cuda" and not runs_on(archs, chip):
            return f"vosengine._C is built for {archs}, and this GPU is sm_{chip}"
        if chip < OLDEST and tensor.dtype == torch.bfloat16:
            return f"wants float16 or float32: sm_{chip} emulates bfloat16"
    return extension.gradient_unsupported(*tensors)


@cache
def runs_on(archs: str, chip: int) -> bool:
    """Return whether code built for architectures such as "80;90a;120" runs on a chip.

    A binary runs on its own capability and, without a suffix such as "a", on later ones of the
    same major version. PTX, which only the last entry includes, runs on every later chip.
    """
    names = archs.split(";")
    for name in names:
        built = int(name.rstrip("af"))
        exact = not name.isdigit()
        if chip == built or (not exact and chip // 10 == built // 10 and chip > built):
            return True
    last = names[-1]
    return last.isdigit() and chip > int(last)


ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as in csrc/cuda_target.h


def stream_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return (device index, handle of the current stream) to launch a CUDA kernel on."""
    if tensor.device.type != "cuda":
        return 0, 0
    stream = torch.cuda.current_stream(tensor.device)
    return stream.device_index, stream.cuda_stream
