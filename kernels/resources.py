"""Resource usage of compiled GPU kernels: registers, shared memory, spills, tensor-core products.

No GPU or driver is needed. Triton kernels are compiled ahead of time for every chip whose tuning
table lists them; CUDA kernels are read from the built extension. Both are inspected with cuobjdump,
which Triton includes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from . import gpu
from .dispatch import Op

T = TypeVar("T")

CHIPS = (80, 86, 89, 90, 100, 120)
KIB = 1024
# Maximum KiB of shared memory per block, by compute capability (CUDA C++ programming guide).
SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
MOST_REGISTERS = 255
# The one kernel that spills (two to four values, on sm_90 and sm_100); a narrower tile moves that
# to another kernel of the same plan. Prefix of its name, bytes.
SPILLING, MOST_SPILLED = "read, pages, bias and top_k fp32", 16
MATRIX = re.compile(r"\b(?:[HIQDB]MMA|[HIQ]GMMA|UTC[A-Z]*MMA)\b")
LOCAL = re.compile(r"\b(?:LDL|STL)\b")
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Build:
    """One specialisation of a Triton kernel, as a tuning table launches it.

    name        unique within the op, such as "read float16 64x512"
    signature   types of the run-time arguments, such as "*fp16", "i32", "fp32"
    constants   values of the tl.constexpr arguments
    chips       compute capabilities whose tuning table uses it, such as 90
    matrix      whether it must contain tensor-core instructions
    divisible   integer arguments that are multiples of 16 in real use; pointers always are
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
    chips: tuple[int, ...]
    matrix: bool
    divisible: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Resources:
    """Resource usage of one kernel on one chip.

    chip       compute capability, such as 90
    registers  per thread
    stack      bytes per thread, which spilled registers use
    local      instructions that access local memory
    shared     bytes per block
    matrix     tensor-core instructions; None if the code was not disassembled
    """

    op: str
    kernel: str
    chip: int
    registers: int
    stack: int
    local: int
    shared: int
    matrix: int | None

    def faults(self, wants_matrix: bool = False) -> list[str]:
        """Return a message for every violated limit: spills, shared memory, registers, and, if
        `wants_matrix`, no tensor-core instruction."""
        limit = SHARED_LIMIT[self.chip] * KIB
        faults = []
        known = self.kernel.startswith(SPILLING) and self.stack <= MOST_SPILLED
        if (self.stack or self.local) and not known:
            faults.append(f"spills: {self.stack} bytes of stack, {self.local} local accesses")
        if self.shared > limit:
            faults.append(f"{self.shared} bytes of shared memory, the chip has {limit}")
        if self.registers > MOST_REGISTERS:
            faults.append(f"{self.registers} registers")
        if wants_matrix and not self.matrix:
            faults.append("no tensor-core instruction")
        return [f"{self.op} {self.kernel} on sm_{self.chip}: {fault}" for fault in faults]


def chips_by(choices: Mapping[int, T]) -> dict[T, tuple[int, ...]]:
    """Turn what is chosen for every chip into the chips of every choice."""
    return {
        choice: tuple(chip for chip, other in choices.items() if other == choice)
        for choice in choices.values()
    }


def builds_of(op: Op) -> tuple[Build, ...]:
    """Return every specialisation in which the op's Triton kernels may be launched."""
    if "triton" not in op.backends:
        return ()
    module = import_module(f"{__package__}.{op.name}.triton_kernel")
    builds: tuple[Build, ...] = module.builds()
    return builds


def measure(op: Op, build: Build, chip: int) -> Resources:
    """Compile one Triton kernel for one chip, as a launch would, and return its resource usage.

    Raises  RuntimeError if Triton is missing or runs its interpreter in this process.
    """
    if gpu.missing is not None or gpu.INTERPRETED:
        raise RuntimeError(gpu.missing or "Triton runs its interpreter; unset TRITON_INTERPRET")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    aligned = [["tt.divisibility", 16]]
    is_aligned = {n for n, kind in build.signature.items() if kind.startswith("*")}
    is_aligned |= set(build.divisible)
    signature = {n: build.signature.get(n, "constexpr") for n in names}
    source = ASTSource(
        build.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in build.constants.items()},
        attrs={(names.index(n),): aligned for n in is_aligned},
    )
    compiled = gpu.triton.compile(
        source,
        target=GPUTarget("cuda", chip, 32),
        options={"num_warps": build.warps, "num_stages": build.stages},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        code = _cuobjdump("-sass", cubin, "-res-usage")  # one call: starting it takes 0.1 s
    usage = USAGE.search(code)
    assert usage is not None, "the format of cuobjdump's report is not known"
    return Resources(
        op=op.name,
        kernel=build.name,
        chip=chip,
        registers=int(usage[2]),
        stack=int(usage[3]),
        local=len(LOCAL.findall(code)),
        shared=compiled.metadata.shared,
        matrix=len(MATRIX.findall(code)),
    )


def _cuobjdump(option: str, file: Path, *more: str) -> str:
    """Return the output of cuobjdump, Triton's or the CUDA toolkit's, for a file."""
    if gpu.missing is None:
        tool = gpu.triton.knobs.nvidia.cuobjdump.path
    else:
        tool = shutil.which("cuobjdump") or "cuobjdump"
    done = subprocess.run(
        [tool, option, *more, str(file)], capture_output=True, text=True, check=True
    )
    return done.stdout


def table(kernels: Iterable[Resources]) -> list[str]:
    """Return the lines of a Markdown table: a row per kernel, a column per chip.

    Cells hold registers / KiB of shared memory / tensor-core instructions, and spilled bytes.
    """
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for used in kernels:
        matrix = "?" if used.matrix is None else used.matrix
        cell = f"{used.registers} / {used.shared / KIB:.0f} / {matrix}"
        if used.stack or used.local:
            cell += f" SPILLS {used.stack} B"
        rows.setdefault((used.op, used.kernel), {})[used.chip] = cell
    chips = sorted({chip for cells in rows.values() for chip in cells})
    lines = [f"| op | kernel | {' | '.join(f'sm_{chip}' for chip in chips)} |"]
    lines.append("|" + "---|" * (len(chips) + 2))
    for (op, kernel), cells in sorted(rows.items()):
        lines.append(f"| {op} | {kernel} | {' | '.join(cells.get(c, '') for c in chips)} |")
    return lines


def cuda_kernels(library: Path, disassemble: Collection[int] = CHIPS) -> list[Resources]:
    """Return the resource usage of every CUDA kernel in a built extension, for all of its chips.

    library      path of the extension
    disassemble  chips whose code is disassembled (5 s each) to count tensor-core instructions and
                 local accesses; stack bytes are known without it

    `shared` is static shared memory. Dynamic shared memory is added, and checked, at launch.
    """
    code = {}
    for chip in disassemble:
        for _, part in _by_chip(_cuobjdump("-sass", library, "-arch", f"sm_{chip}")):
            names_and_bodies = re.split(r"Function : (\S+)\n", part)[1:]
            for name, body in zip(names_and_bodies[::2], names_and_bodies[1::2], strict=True):
                code[chip, name] = body
    kernels = []
    for chip, part in _by_chip(_cuobjdump("-res-usage", library)):
        for name, registers, stack, shared in USAGE.findall(part):
            body = code.get((chip, name))
            kernels.append(
                Resources(
                    op=_file_of(name),
                    kernel=_demangled(name),
                    chip=chip,
                    registers=int(registers),
                    stack=int(stack),
                    local=0 if body is None else len(LOCAL.findall(body)),
                    shared=int(shared),
                    matrix=None if body is None else len(MATRIX.findall(body)),
                )
            )
    return kernels


def _by_chip(listing: str) -> Iterator[tuple[int, str]]:
    """Split a cuobjdump listing into (compute capability, section)."""
    for part in listing.split("Fatbin elf code:")[1:]:
        arch = re.search(r"arch = sm_(\d+)", part)
        if arch is not None:
            yield int(arch[1]), part


def _file_of(mangled: str) -> str:
    """Return the stem of the .cu file, which nvcc writes into names of an unnamed namespace."""
    stem = re.search(r"\d_([a-z_]+)_cu_[0-9a-f]{8}", mangled)
    return stem[1] if stem else "?"


@cache
def _demangled(mangled: str) -> str:
    """Turn "void vosengine::(anonymous namespace)::scale<float>(float*)" into "scale<float>"."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    whole = done.stdout.strip().removeprefix("void ")
    name = whole.split("(anonymous namespace)::", 1)[-1]
    return re.sub(r"\(.*\)$", "", name).replace("(anonymous namespace)::", "")
