"""What the GPU backends share: Triton, where it is installed, and what tensors and chips they take.

Triton reads TRITON_INTERPRET=1 when a kernel is defined; then kernels run on the CPU, in numpy, and
the Triton backends take tensors there. That is for tests: it is thousands of times slower.
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

OLDEST = 80  # Triton's own lower end: Ampere, the first with bfloat16 on its matrix units

try:
    import triton
    import triton.language as tl

    missing: str | None = None
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ImportError as error:
    missing = f"Triton is not installed ({error}); a CUDA build of torch brings it"
    INTERPRETED = False

    class _Absent:
        """Lets a file that defines kernels be imported; nothing in it can be called."""

        def jit(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
            return kernel

    triton = tl = _Absent()


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def capability(device: torch.device) -> int:
    """Compute capability as one number, 90 for sm_90; a CPU that runs GPU kernels counts as 80."""
    if device.type != "cuda":
        return OLDEST
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


Run = TypeVar("Run", bound=Callable[..., Any])


def on_its_device(run: Run) -> Run:
    """For a Triton backend's `run`: launches go to the device of its first tensor, and not to
    whichever is the current one."""

    @wraps(run)
    def guarded(*args: Any, **options: Any) -> Any:
        first = next(x for x in (*args, *options.values()) if isinstance(x, torch.Tensor))
        with torch.cuda.device(first.get_device()):  # -1 on a CPU: none
            return run(*args, **options)

    return cast(Run, guarded)


def for_chip(table: Mapping[int, T], device: torch.device) -> T:
    """The entry of a tuning table for this device: its own, else that of the nearest older chip."""
    chip = capability(device)
    return table[max((known for known in table if known <= chip), default=min(table))]


def triton_unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Why a Triton backend cannot take these tensors, as far as every op shares the reason."""
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
    """Why a CUDA backend cannot take these tensors, as far as every op shares the reason."""
    if extension.missing is not None:
        return extension.missing
    compiled = extension.load()
    if not hasattr(compiled, "cuda_device_type"):
        return "vosengine._C is built without CUDA; `vosengine doctor` says how to get it"
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
    """Whether code built for "80;90a;120" runs on a chip: same generation, not newer than the chip
    (and, with an "a", exactly that chip), or newer than all, by the PTX of the last."""
    names = archs.split(";")
    for name in names:
        built = int(name.rstrip("af"))
        exact = not name.isdigit()
        if chip == built or (not exact and chip // 10 == built // 10 and chip > built):
            return True
    last = names[-1]
    return last.isdigit() and chip > int(last)


ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # codes of csrc/cuda_target.h


def stream_of(tensor: torch.Tensor) -> tuple[int, int]:
    """(device index, stream handle) that a CUDA kernel is to be launched on for this tensor."""
    if tensor.device.type != "cuda":
        return 0, 0
    stream = torch.cuda.current_stream(tensor.device)
    return stream.device_index, stream.cuda_stream
