"""Every launch of the cases passes Triton's front end, specialised as for a GPU.

A launch specialises on integers equal to 1 and on multiples of 16: code that compiles in general
may fail then, which the interpreter does not detect. No GPU is needed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vosengine.kernels import OPS, Op, gpu
from vosengine.kernels.parity import cases_of

pytestmark = pytest.mark.skipif(gpu.missing is not None, reason=str(gpu.missing))
DTYPES = (torch.float32, torch.bfloat16)


class Absent:
    """Stub of a GPU driver with the methods that a launch calls before compilation."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """End launches after the front end; returns the names of the kernels that passed it."""
    from triton._C.libtriton import ir
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler import ASTSource
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    kernels: set[str] = set()
    done: set[Any] = set()
    target = Absent().get_current_target()
    backend = CUDABackend(target)

    def front_end(
        self: Any, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, *rest: Any
    ) -> None:
        if (self, key) not in done:
            done.add((self, key))
            context = ir.context()
            ir.load_dialects(context)
            backend.load_dialects(context)
            made = backend.get_codegen_implementation(options)
            source = ASTSource(self, signature, constexprs, rest[0])
            source.make_ir(target, options, made, backend.get_module_map(), context)
        kernels.add(self.__name__)

    monkeypatch.setattr(JITFunction, "_do_compile", front_end)
    monkeypatch.setattr(gpu, "capability", lambda device: 90)
    monkeypatch.setattr(driver, "_active", Absent())
    return kernels


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "op", [op for op in OPS if "triton" in op.backends], ids=lambda op: op.name
)
@pytest.mark.slow
def test_every_launch_passes_the_front_end(op: Op, dtype: torch.dtype, launched: set[str]) -> None:
    for case in cases_of(op):
        if not case.bench:
            arguments = case.arguments(dtype=dtype)
            op.contract(**arguments)
            op.backends["triton"].run(**arguments)
    assert launched
