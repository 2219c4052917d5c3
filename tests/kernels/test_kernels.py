"""Parity of every op on every backend, case, dtype and instruction set with its reference.

Without a GPU, CUDA kernels run in the emulation of tests/cuda_on_cpu and Triton's in its
interpreter (`make test` does both; by hand: TRITON_INTERPRET=1 pytest
tests/kernels/test_kernels.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_backends import emulated_cuda

from vosengine.kernels import OPS, Op, gpu
from vosengine.kernels.cases import Case, map_tensors
from vosengine.kernels.extension import load, missing
from vosengine.kernels.parity import cases_of, check_parity
from vosengine.kernels.resources import builds_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
CHIPS = (90, 120)  # chips whose tuning tables differ from sm_80's, which the interpreter uses
WITH_TRITON = [op for op in OPS if "triton" in op.backends]
ISAS = ("baseline", "avx2", "avx512", "amx")

needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))


def all_calls(*backends: str) -> Iterator[object]:
    for op in OPS:
        for backend in op.backends:
            for case in cases_of(op):
                if not case.bench and backend in (backends or op.backends):
                    for dtype in DTYPES:
                        name = str(dtype).removeprefix("torch.")
                        yield pytest.param(
                            op, backend, case, dtype, id=f"{op.name}-{backend}-{case.name}-{name}"
                        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "backend", "case", "dtype"), list(all_calls()))
@pytest.mark.usefixtures("poisoned_memory")
def test_backend_agrees_with_reference(
    op: Op, backend: str, case: Case, dtype: torch.dtype, device: str
) -> None:
    reason = op.explain(**case.arguments(device, dtype))[backend]
    if reason is not None:
        pytest.skip(reason)
    verdict = check_parity(op, case, backend, device=device, dtype=dtype)
    assert verdict.fault is None, verdict


@pytest.mark.skipif(gpu.INTERPRETED, reason="this process is for Triton's interpreter")
@pytest.mark.parametrize(("op", "backend", "case", "dtype"), list(all_calls("cuda")))
@pytest.mark.usefixtures("poisoned_memory")
def test_cuda_agrees_on_the_cpu(op: Op, backend: str, case: Case, dtype: torch.dtype) -> None:
    """Threads run forwards and backwards, as a missing barrier may show in one order only."""
    orders = ("forwards", "backwards") if dtype == torch.float32 else ("shuffled",)
    for order in orders:
        with emulated_cuda(order):
            reason = op.explain(**case.arguments(dtype=dtype))[backend]
            if reason is not None:
                pytest.skip(reason)
            verdict = check_parity(op, case, backend, dtype=dtype)
        assert verdict.fault is None, (order, verdict)


@pytest.mark.skipif(not gpu.INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("op", WITH_TRITON, ids=lambda op: op.name)
def test_triton_agrees_with_the_tables_of_other_chips(
    op: Op, chip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [{b.name for b in builds_of(op) if each in b.chips} for each in (80, chip)]
    if tables[0] == tables[1]:
        pytest.skip(f"{op.name}: sm_{chip} has the table of sm_80")
    monkeypatch.setattr(gpu, "capability", lambda device: chip)
    for case in cases_of(op):
        given = case.arguments(dtype=torch.float16)
        if not case.bench and op.explain(**given)["triton"] is None:
            verdict = check_parity(op, case, "triton", dtype=torch.float16)
            assert verdict.fault is None, (case.name, verdict)


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.usefixtures("poisoned_memory")
def test_every_instruction_set_agrees(op: Op, isa: str) -> None:
    try:
        load().choose_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for case in cases_of(op):
            for dtype in (torch.float32, torch.bfloat16):
                if not case.bench and op.explain(**case.arguments(dtype=dtype))["cpu"] is None:
                    verdict = check_parity(op, case, "cpu", dtype=dtype)
                    assert verdict.fault is None, (case.name, verdict)
    finally:
        load().choose_isa("auto")


@needs_extension
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_thread_count_does_not_matter(op: Op) -> None:
    """One thread, and more threads than work items."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 7):
            torch.set_num_threads(threads)
            for case in cases_of(op):
                if not case.bench and op.explain(**case.arguments())["cpu"] is None:
                    verdict = check_parity(op, case, "cpu")
                    assert verdict.fault is None, (case.name, verdict)
    finally:
        torch.set_num_threads(before)


@needs_extension
def test_support_matrix() -> None:
    """Supported dtypes of each compiled backend on the CPU: a wrong unsupported reason would
    otherwise only skip tests."""
    matrix = {
        (op.name, str(dtype).removeprefix("torch.")): sum(
            op.explain(**case.arguments(dtype=dtype))["cpu"] is None
            for case in cases_of(op)
            if not case.bench
        )
        for op in OPS
        for dtype in DTYPES
    }
    whole = {op.name: sum(not case.bench for case in cases_of(op)) for op in OPS}
    for op in OPS:
        compiled = "cpu" in op.backends
        assert matrix[op.name, "float32"] == (whole[op.name] if compiled else 0), op.name
    for dtype in ("float16", "bfloat16"):
        assert matrix["group_centres", dtype] == 0
        for name in ("correlate_frames", "deform_conv", "pool_regions", "read_memory"):
            assert matrix[name, dtype] == whole[name], name


def tensors_in(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(found.append, value)
    return found


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_inputs_stay_as_they_were(op: Op) -> None:
    for case in cases_of(op):
        if case.bench:
            continue
        given = case.arguments()
        before = map_tensors(torch.clone, given)
        op(**given)
        for name, value in before.items():
            torch.testing.assert_close(
                tensors_in(given[name]), tensors_in(value), rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_documents_its_contract(op: Op) -> None:
    text = op.__doc__ or ""
    for section in ("returns", "Dtype", "Device", "Error", "Raises", "Source"):
        assert section in text, f"{op.name} does not say: {section}"
