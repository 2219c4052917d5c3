"""GPU kernels compiled for their chips: no spills, within limits, products on tensor cores.

No GPU is needed. Resource usage is printed as a table at the end of the run.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import RESOURCES

from vosengine.kernels import OPS, Op, extension, gpu
from vosengine.kernels.gpu import tl, triton
from vosengine.kernels.resources import (
    MOST_SPILLED,
    SPILLING,
    Build,
    Resources,
    builds_of,
    cuda_kernels,
    measure,
    table,
)

COMMITTED = Path(__file__).resolve().parents[2] / "bench" / "results" / "kernel-resources.md"
# A chip of each kind: Ampere's mma, Hopper's wgmma, and the least shared memory of the newest. All
# chips take twice as long; bench/resources.py compiles for all of them, and writes the table.
TESTED = (80, 90, 120)
LOOKED_AT = 80  # the chip whose CUDA code is disassembled; bench/resources.py does all
TRITON = [op for op in OPS if "triton" in op.backends]
CUDA = [op for op in OPS if "cuda" in op.backends]

needs_compiler = pytest.mark.skipif(gpu.missing is not None, reason=str(gpu.missing))


def described(resources: Resources) -> dict[str, object]:
    return dataclasses.asdict(resources)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("chip", TESTED)
@pytest.mark.parametrize("op", TRITON, ids=lambda op: op.name)
def test_triton_kernels_fit_their_chips(
    op: Op, chip: int, record_property: pytest.RecordProperty
) -> None:
    builds = [build for build in builds_of(op) if chip in build.chips]
    assert builds, f"{op.name} has no kernel for sm_{chip}"
    faults = []
    for build in builds:
        resources = measure(op, build, chip)
        record_property(RESOURCES, described(resources))
        faults += resources.faults(build.matrix)
    assert not faults


@pytest.mark.skipif(extension.missing is not None, reason=str(extension.missing))
def test_cuda_kernels_fit_their_chips(record_property: pytest.RecordProperty) -> None:
    compiled = extension.load()
    if not hasattr(compiled, "cuda_archs"):
        pytest.skip("vosengine._C is built without CUDA: nvcc was not found")
    kernels = cuda_kernels(Path(str(compiled.__file__)), disassemble=[LOOKED_AT])
    for resources in kernels:
        record_property(RESOURCES, described(resources))
    faults = [fault for resources in kernels for fault in resources.faults()]
    assert not faults
    products = {
        resources.kernel
        for resources in kernels
        if resources.chip == LOOKED_AT and resources.matrix
    }
    assert products == {"convolve<__half>", "convolve<__nv_bfloat16>"}
    built = {int(arch.rstrip("a")) for arch in compiled.cuda_archs().split(";")}
    for op in CUDA:
        assert {resources.chip for resources in kernels if resources.op == op.name} == built, (
            op.name
        )


@pytest.mark.parametrize("op", TRITON, ids=lambda op: op.name)
def test_builds_have_names_of_their_own_and_all_arguments(op: Op) -> None:
    builds = builds_of(op)
    names = [(build.name, chip) for build in builds for chip in build.chips]
    assert len(names) == len(set(names))
    for build in builds:
        if gpu.missing is None:
            declared = {*build.signature, *build.constants}
            assert declared == set(build.kernel.arg_names), build.name


def test_the_committed_table_names_every_triton_kernel() -> None:
    """Values depend on the compiler version; the rows must be current."""
    text = COMMITTED.read_text(encoding="utf-8")
    for op in TRITON:
        for build in builds_of(op):
            assert f"| {op.name} | {build.name} |" in text, build.name
    for op in CUDA:
        assert f"| {op.name} | " in text, op.name


def test_the_committed_table_has_every_chip_and_no_spill() -> None:
    rows = [line for line in COMMITTED.read_text(encoding="utf-8").splitlines() if "|" in line]
    for op in TRITON:
        for build in builds_of(op):
            (row,) = (row for row in rows if row.startswith(f"| {op.name} | {build.name} |"))
            cells = [cell.strip() for cell in row.strip("|").split("|")][2:]
            assert sum(bool(cell) for cell in cells) == len(build.chips), build.name
            for spilled in re.findall(r"SPILLS (\d+) B", row):
                assert build.name.startswith(SPILLING) and int(spilled) <= MOST_SPILLED


@triton.jit
def _crowded(x, out, M: tl.constexpr, N: tl.constexpr):
    """More accumulators than registers."""
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for step in range(4):
        a = tl.load(x + step + rows[:, None] * 64 + tl.arange(0, 64)[None, :])
        b = tl.load(x + step + tl.arange(0, 64)[:, None] * N + columns[None, :])
        total += tl.dot(a, b)
        total = tl.exp(total)
    tl.store(out + rows[:, None] * N + columns[None, :], total)


def planted(name: str, kind: str, m: int, n: int, matrix: bool = True) -> Build:
    signature = {"x": f"*{kind}", "out": "*fp32"}
    return Build(name, _crowded, signature, {"M": m, "N": n}, 4, 2, (80,), matrix)


@needs_compiler
@pytest.mark.slow
def test_a_planted_spill_is_found() -> None:
    resources = measure(OPS[0], planted("spills", "fp16", 128, 512), 80)
    assert any("spills" in fault for fault in resources.faults(wants_matrix=True))


@needs_compiler
@pytest.mark.slow
def test_a_kernel_without_tensor_cores_is_found() -> None:
    build = planted("small", "fp16", 16, 16)
    resources = measure(OPS[0], build, 80)
    assert resources.matrix > 0
    assert not resources.faults(wants_matrix=True)
    plain = dataclasses.replace(resources, matrix=0)
    assert plain.faults(wants_matrix=True) == [
        f"{OPS[0].name} small on sm_80: no tensor-core instruction"
    ]
    assert not plain.faults()


def test_too_much_shared_memory_is_found() -> None:
    most = Resources("op", "kernel", 86, 100, 0, 0, 99 * 1024, 1)
    assert not most.faults()
    assert "the chip has" in dataclasses.replace(most, shared=99 * 1024 + 1).faults()[0]
    assert not dataclasses.replace(most, chip=90, shared=227 * 1024).faults()


def test_the_table_has_a_row_per_kernel_and_a_column_per_chip() -> None:
    one = Resources("read", "kernel a", 80, 100, 0, 0, 2048, 8)
    other = dataclasses.replace(one, chip=90, registers=90, stack=16)
    lines = table([one, other, dataclasses.replace(one, kernel="kernel b")])
    assert lines[0] == "| op | kernel | sm_80 | sm_90 |"
    assert lines[2] == "| read | kernel a | 100 / 2 / 8 | 90 / 2 / 8 SPILLS 16 B |"
    assert lines[3] == "| read | kernel b | 100 / 2 / 8 |  |"
