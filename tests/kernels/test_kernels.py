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
from op_backends import ISAS, emulated_cuda

from vosengine.kernels import OPS, Op, gpu
from vosengine.kernels.cases import Case, map_tensors
from vosengine.kernels.extension import load, missing
from vosengine.kernels.parity import cases_of, check_parity
from vosengine.kernels.resources import builds_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHIPS = (90, 120)  # whose tuning tables differ from sm_80's, which the interpreter stands for
# What a backend refuses on its own device, so that it is no case of it.
FLOAT32_ALONE = {(name, "cpu") for name in ("fit_target", "group_centres", "match_proposals")}
REFUSED_CASES = {("read_memory", "triton", "top_k above what is taken in registers")}
# In Triton's interpreter, which is slow, in float16 alone: long and wide memory is read there in
# every dtype by the cases without pages, and page tables in every dtype by the small cases.
LARGE = {
    "pages, several blocks",
    "pages longer than blocks",
    "pages, real channels",
    "pages, wide keys and many values",
}

needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))


def refused(op: Op, backend: str, case: Case, dtype: torch.dtype) -> bool:
    if (op.name, backend) in FLOAT32_ALONE and dtype != torch.float32:
        return True
    return (op.name, backend, case.name) in REFUSED_CASES


def calls(*backends: str) -> Iterator[tuple[Op, str, Case, torch.dtype]]:
    """Every call of the cases on these backends, or on all."""
    for op in OPS:
        for backend in op.backends:
            for case in cases_of(op):
                if not case.bench and backend in (backends or op.backends):
                    for dtype in DTYPES:
                        yield op, backend, case, dtype


def named(call: tuple[Op, str, Case, torch.dtype], *more: str, marks: Any = ()) -> object:
    op, backend, case, dtype = call
    name = "-".join((op.name, backend, case.name, str(dtype).removeprefix("torch."), *more))
    return pytest.param(*call, *more, id=name, marks=marks)


def on_their_devices() -> Iterator[object]:
    """Every call on the device that its backend is for; Triton's on a CPU too, interpreted."""
    for call in calls():
        backend = call[1]
        if not refused(*call):
            if backend == "cpu":
                yield named(call, "cpu", marks=needs_extension)
            else:
                yield named(call, "cuda", marks=pytest.mark.gpu)
            if backend == "triton" and (call[2].name not in LARGE or call[3] == torch.float16):
                yield named(call, "cpu", marks=pytest.mark.interpreter)


@pytest.mark.parametrize(("op", "backend", "case", "dtype", "device"), list(on_their_devices()))
@pytest.mark.usefixtures("poisoned_memory")
def test_backend_agrees_with_reference(
    op: Op, backend: str, case: Case, dtype: torch.dtype, device: str
) -> None:
    reason = op.explain(**case.arguments(device, dtype))[backend]
    if reason is not None and device == "cuda":  # built without CUDA, or for another GPU
        pytest.skip(reason)
    verdict = check_parity(op, case, backend, device=device, dtype=dtype)
    assert verdict.fault is None, verdict


def test_every_backend_has_cases_on_its_device() -> None:
    covered = {
        (case.values[0].name, case.values[1], mark.name)  # type: ignore[attr-defined]
        for case in on_their_devices()
        for mark in case.marks  # type: ignore[attr-defined]
    }
    for op in OPS:
        for backend in op.backends:
            if backend != "cpu":
                assert (op.name, backend, "gpu") in covered
            if backend == "triton":
                assert (op.name, backend, "interpreter") in covered


def test_what_is_no_case_is_refused() -> None:
    """On the CPU; that of Triton by its shape, before it looks for a GPU."""
    names = {case.name for op in OPS for case in cases_of(op)}
    assert {*LARGE, *(refused_case[2] for refused_case in REFUSED_CASES)} <= names
    left_out = [call for call in calls() if refused(*call)]
    assert {(op.name, backend) for op, backend, _, _ in left_out} == {
        *FLOAT32_ALONE,
        *(refused_case[:2] for refused_case in REFUSED_CASES),
    }
    for op, backend, case, dtype in left_out:
        reason = op.explain(**case.arguments(dtype=dtype))[backend]
        if missing is None or backend != "cpu":
            assert reason is not None
            assert reason.startswith(("wants float32", "wants top_k")), reason


@pytest.mark.parametrize(
    ("op", "backend", "case", "dtype"), [named(call) for call in calls("cuda")]
)
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.slow
def test_cuda_agrees_on_the_cpu(op: Op, backend: str, case: Case, dtype: torch.dtype) -> None:
    """Threads run forwards and backwards, as a missing barrier may show in one order only."""
    orders = ("forwards", "backwards") if dtype == torch.float32 else ("shuffled",)
    for order in orders:
        with emulated_cuda(order):
            verdict = check_parity(op, case, backend, dtype=dtype)
        assert verdict.fault is None, (order, verdict)


def with_tables_of_their_own() -> Iterator[object]:
    """(op, chip) where Triton's tuning table is not that of sm_80."""
    for op in OPS:
        for chip in CHIPS if "triton" in op.backends else ():
            usual, other = ({b.name for b in builds_of(op) if c in b.chips} for c in (80, chip))
            if usual != other:
                yield pytest.param(op, chip, id=f"{op.name}-triton-{chip}")


@pytest.mark.interpreter
@pytest.mark.parametrize(("op", "chip"), list(with_tables_of_their_own()))
def test_triton_agrees_with_the_tables_of_other_chips(
    op: Op, chip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "capability", lambda device: chip)
    for case in cases_of(op):
        if not case.bench and not refused(op, "triton", case, torch.float16):
            verdict = check_parity(op, case, "triton", dtype=torch.float16)
            assert verdict.fault is None, (case.name, verdict)


@needs_extension
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.slow
def test_every_instruction_set_agrees(op: Op, isa: str) -> None:
    load().choose_isa(isa)
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
@pytest.mark.slow
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
    tensors: list[torch.Tensor] = []
    map_tensors(tensors.append, value)
    return tensors


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_inputs_stay_as_they_were(op: Op) -> None:
    for case in cases_of(op):
        if case.bench:
            continue
        arguments = case.arguments()
        before = map_tensors(torch.clone, arguments)
        op(**arguments)
        for name, value in before.items():
            torch.testing.assert_close(
                tensors_in(arguments[name]), tensors_in(value), rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_documents_its_contract(op: Op) -> None:
    text = op.__doc__ or ""
    for section in ("returns", "Dtype", "Device", "Error", "Raises", "Source"):
        assert section in text, f"{op.name} does not say: {section}"
