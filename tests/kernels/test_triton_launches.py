"""Every launch that the cases make passes Triton's front end, specialised as for a GPU.

Integers that are 1 become constants and multiples of 16 are known as such in a launch: code that
compiles in general may not compile then, and the interpreter does not notice. No GPU is needed.
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
    """The driver of a GPU that is not there, as far as a launch asks before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Launches end after the front end; the names of the kernels that got there."""
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
def test_every_launch_passes_the_front_end(op: Op, dtype: torch.dtype, launched: set[str]) -> None:
    for case in cases_of(op):
        if not case.bench:
            given = case.arguments(dtype=dtype)
            op.contract(**given)
            op.backends["triton"].run(**given)
    assert launched
