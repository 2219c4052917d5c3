"""What compiled GPU kernels need of a chip, found without a GPU or a driver.

A Triton kernel is compiled ahead of time for every chip whose tuning table asks for it; the CUDA
kernels are read out of the built extension. CUDA's own cuobjdump, which Triton brings, says the
rest.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from . import gpu
from .dispatch import Op

CHIPS = (80, 86, 89, 90, 100, 120)
KIB = 1024
# KiB of shared memory that one block may ask for (CUDA C++ programming guide).
SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
MOST_REGISTERS = 255
MATRIX = re.compile(r"\b(?:[HIQDB]MMA|[HIQ]GMMA|UTC[A-Z]*MMA)\b")
LOCAL = re.compile(r"\b(?:LDL|STL)\b")
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Build:
    """One compiled form of a Triton kernel: what a tuning table makes of it on some chips.

    name        unique within the op, such as "read float16 64x512"
    signature   the type of every argument that is no constant, such as "*fp16", "i32", "fp32"
    constants   the value of every argument that is one (tl.constexpr)
    chips       compute capabilities whose tuning table asks for it, such as 90
    matrix      whether its work must be done by the tensor cores
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
    """What one kernel needs on one chip: per thread registers and bytes of stack (where spilled
    registers go), per block bytes of shared memory, and how many instructions of its code are
    tensor-core products (None: not looked for) or accesses to local memory."""

    op: str
    kernel: str
    chip: int
    registers: int
    stack: int
    local: int
    shared: int
    matrix: int | None

    def faults(self, wants_matrix: bool = False) -> list[str]:
        """Everything that must not be."""
        limit = SHARED_LIMIT[self.chip] * KIB
        found = []
        if self.stack or self.local:
            found.append(f"spills: {self.stack} bytes of stack, {self.local} local accesses")
        if self.shared > limit:
            found.append(f"{self.shared} bytes of shared memory, the chip has {limit}")
        if self.registers > MOST_REGISTERS:
            found.append(f"{self.registers} registers")
        if wants_matrix and not self.matrix:
            found.append("no tensor-core instruction")
        return [f"{self.op} {self.kernel} on sm_{self.chip}: {fault}" for fault in found]


def builds_of(op: Op) -> tuple[Build, ...]:
    """Every form in which an op's Triton kernels may be launched."""
    if "triton" not in op.backends:
        return ()
    module = import_module(f"{__package__}.{op.name}.triton_kernel")
    found: tuple[Build, ...] = module.builds()
    return found


def measure(op: Op, build: Build, chip: int) -> Resources:
    """Compile one Triton kernel for one chip, as its launch would, and read what it needs.

    Raises  RuntimeError where Triton is missing or interprets its kernels in this process.
    """
    if gpu.missing is not None or gpu.INTERPRETED:
        raise RuntimeError(gpu.missing or "Triton interprets in this process: nothing to compile")
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
        code = _ask("-sass", cubin, "-res-usage")  # at once: its start takes a tenth of a second
    usage = USAGE.search(code)
    assert usage is not None, "cuobjdump's report has another form than this code knows"
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


def _ask(question: str, file: Path, *more: str) -> str:
    """What cuobjdump, Triton's or the CUDA toolkit's, says of a file."""
    if gpu.missing is None:
        tool = gpu.triton.knobs.nvidia.cuobjdump.path
    else:
        tool = shutil.which("cuobjdump") or "cuobjdump"
    done = subprocess.run(
        [tool, question, *more, str(file)], capture_output=True, text=True, check=True
    )
    return done.stdout


def table(found: Iterable[Resources]) -> list[str]:
    """Lines of Markdown: a row per kernel, a column per chip, in a cell registers / KiB of shared
    memory / tensor-core instructions, and what is spilled where something is."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for each in found:
        matrix = "?" if each.matrix is None else each.matrix
        cell = f"{each.registers} / {each.shared / KIB:.0f} / {matrix}"
        if each.stack or each.local:
            cell += f" SPILLS {each.stack} B"
        rows.setdefault((each.op, each.kernel), {})[each.chip] = cell
    chips = sorted({chip for cells in rows.values() for chip in cells})
    lines = [f"| op | kernel | {' | '.join(f'sm_{chip}' for chip in chips)} |"]
    lines.append("|" + "---|" * (len(chips) + 2))
    for (op, kernel), cells in sorted(rows.items()):
        lines.append(f"| {op} | {kernel} | {' | '.join(cells.get(c, '') for c in chips)} |")
    return lines


def cuda_kernels(library: Path, disassemble: Collection[int] = CHIPS) -> list[Resources]:
    """What every CUDA kernel in a built extension needs, for every chip that it is built for.

    The code is looked through for the chips that are named, 5 s for each; what is on the stack is
    known without that. Shared memory is what the code itself declares; what a launch asks for comes
    on top of it, and the launch checks it.
    """
    code = {}
    for chip in disassemble:
        for _, part in _by_chip(_ask("-sass", library, "-arch", f"sm_{chip}")):
            names_and_bodies = re.split(r"Function : (\S+)\n", part)[1:]
            for name, body in zip(names_and_bodies[::2], names_and_bodies[1::2], strict=True):
                code[chip, name] = body
    found = []
    for chip, part in _by_chip(_ask("-res-usage", library)):
        for name, registers, stack, shared in USAGE.findall(part):
            body = code.get((chip, name))
            found.append(
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
    return found


def _by_chip(listing: str) -> Iterator[tuple[int, str]]:
    for part in listing.split("Fatbin elf code:")[1:]:
        named = re.search(r"arch = sm_(\d+)", part)
        if named is not None:
            yield int(named[1]), part


def _file_of(mangled: str) -> str:
    """The .cu file of a kernel in an unnamed namespace, into whose name nvcc writes it."""
    named = re.search(r"\d_([a-z_]+)_cu_[0-9a-f]{8}", mangled)
    return named[1] if named else "?"


@cache
def _demangled(mangled: str) -> str:
    """ "void vosengine::(anonymous namespace)::scale<float>(float*)" becomes "scale<float>"."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    whole = done.stdout.strip().removeprefix("void ")
    name = whole.split("(anonymous namespace)::", 1)[-1]
    return re.sub(r"\(.*\)$", "", name).replace("(anonymous namespace)::", "")
