"""Backends on which tests of ops run without a GPU, and the parity rule for independent results.

CUDA kernels run in the emulation of tests/cuda_on_cpu, with several thread orders; Triton kernels
run in its interpreter if the process was started with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
import torch

from vosengine.kernels import extension, gpu
from vosengine.kernels.dispatch import Op, use_backend
from vosengine.kernels.parity import FLOOR_ULPS

ORDERS = {"forwards": 0, "backwards": 1, "shuffled": 2}

REFERENCE_ULPS = 1000  # maximum rounding error of a reference against float64


def _instruction_sets() -> tuple[str, ...]:
    """Those of this processor, narrowest first."""
    supported: list[str] = []
    if extension.missing is None:
        for isa in ("baseline", "avx2", "avx512", "amx"):
            try:
                extension.load().choose_isa(isa)
            except ValueError:
                break
            supported.append(isa)
        extension.load().choose_isa("auto")
    return tuple(supported)


ISAS = _instruction_sets()
CPU = tuple(f"cpu {isa}" for isa in ISAS if isa != "amx")  # AMX: tests/kernels/test_kernels.py
CUDA = ("cuda forwards", "cuda backwards") if cuda_on_cpu.missing is None else ()


def names_of(op: Op) -> tuple[str, ...]:
    """Return where an op can run here: the reference, C++ per instruction set of this processor,
    CUDA per thread order; only Triton if its interpreter is active."""
    if gpu.INTERPRETED:
        return ("triton",) if "triton" in op.backends else ()
    return ("reference", *(name for name in (*CPU, *CUDA) if name.split()[0] in op.backends))


@contextmanager
def running_on(name: str) -> Iterator[None]:
    """Run ops inside the block on one of names_of(op)."""
    backend, _, isa = name.partition(" ")
    if not isa:
        with use_backend(backend):
            yield
        return
    if backend == "cuda":
        with emulated_cuda(isa), use_backend(backend):
            yield
        return
    compiled = extension.load()
    compiled.choose_isa(isa)
    try:
        with use_backend(backend):
            yield
    finally:
        compiled.choose_isa("auto")


@contextmanager
def emulated_cuda(order: str) -> Iterator[None]:
    """Use the emulated extension inside the block: CUDA kernels run on CPU tensors."""
    if cuda_on_cpu.missing is not None:
        pytest.skip(cuda_on_cpu.missing)
    emulated = cuda_on_cpu.load()
    before = extension._C, extension.missing
    emulated.set_order(ORDERS[order])
    extension._C, extension.missing = emulated, None
    try:
        yield
    finally:
        extension._C, extension.missing = before
        emulated.set_order(0)


def assert_near(got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor) -> None:
    """Assert the rule of kernels/parity.py, with independent float64 results as the truth.

    got    result of a backend
    plain  result of the reference in the same dtype
    truth  independent result in float64
    """
    assert got.shape == truth.shape
    assert got.dtype == plain.dtype
    if got.numel() == 0:
        return
    eps, magnitude = torch.finfo(got.dtype).eps, max(1.0, float(truth.abs().max()))
    own = float((plain.double() - truth).abs().max())
    assert own <= REFERENCE_ULPS * eps * magnitude  # a wrong reference would allow any error
    allowed = 2 * own + FLOOR_ULPS * eps * magnitude
    assert torch.isfinite(got).all()
    assert float((got.double() - truth).abs().max()) <= allowed


def in_one_piece(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return NumPy arguments of `read_memory` without `pages` and `query_of`: positions are looked
    up one by one, and those past a group's length are NaN."""
    apart = {name: value for name, value in arguments.items() if name not in ("pages", "query_of")}
    if "query_of" in arguments:
        apart["query_key"] = arguments["query_key"][arguments["query_of"]]
    if "pages" in arguments:
        pages, size = arguments["pages"], arguments["memory_key"].shape[1]
        ends = arguments.get("length", [pages.shape[1] * size] * len(pages))
        for name in ("memory_key", "memory_value", "bias"):
            if arguments.get(name) is not None:
                pool = arguments[name]
                shape = (len(pages), pages.shape[1] * size, *pool.shape[2:])
                apart[name] = np.full(shape, np.nan, pool.dtype)
                for g, end in enumerate(ends):
                    for n in range(end):
                        apart[name][g, n] = pool[pages[g, n // size], n % size]
    return apart
