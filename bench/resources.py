"""Compile every GPU kernel for every chip and write its resource usage; no GPU is needed.

    python bench/resources.py [--file bench/results/kernel-resources.md]

Exits with an error if a kernel spills, exceeds the limits of its chip, or contains no tensor-core
instructions although it should.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path

from environment import RESULTS

from vosengine.kernels import OPS, extension
from vosengine.kernels.resources import CHIPS, Resources, builds_of, cuda_kernels, measure, table

INTRODUCTION = """# What the GPU kernels need

Registers per thread / KiB of shared memory per block / tensor-core instructions in the code, for
every chip; compiled with {compilers}, without a GPU. `make test` compiles a part of it again and
fails on a spill or a limit that is exceeded. Triton's shared memory is all that a launch takes;
that of CUDA C++ is what the code declares, to which some launches add. An empty cell: the chip's
tuning table does not ask for that form.

"""


def measure_one(task: tuple[int, int, int]) -> tuple[Resources, list[str]]:
    op, number, chip = task
    build = builds_of(OPS[op])[number]
    resources = measure(OPS[op], build, chip)
    return resources, resources.faults(build.matrix)


def measure_triton() -> tuple[list[Resources], list[str]]:
    tasks = [
        (index, number, chip)
        for index, op in enumerate(OPS)
        for number, build in enumerate(builds_of(op))
        for chip in CHIPS
        if chip in build.chips
    ]
    with ProcessPoolExecutor() as pool:
        done = list(pool.map(measure_one, tasks))
    return [resources for resources, _ in done], [fault for _, faults in done for fault in faults]


def measure_cuda() -> tuple[list[Resources], list[str]]:
    compiled = extension.load()
    if not hasattr(compiled, "cuda_archs"):
        sys.exit("vosengine._C is built without CUDA; put nvcc on the PATH and build it again")
    resources = cuda_kernels(Path(str(compiled.__file__)))
    return resources, [fault for kernel in resources for fault in kernel.faults()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=RESULTS / "kernel-resources.md")
    options = parser.parse_args()
    triton, triton_faults = measure_triton()
    cuda, cuda_faults = measure_cuda()
    toolkit = int(extension.load().build_info()["cuda_runtime"])
    nvcc = f"CUDA {toolkit // 1000}.{toolkit % 1000 // 10}"
    compilers = f"Triton {metadata.version('triton')} and {nvcc}"
    lines = [f"## Triton\n\n{chr(10).join(table(triton))}\n"]
    lines.append(f"\n## CUDA C++\n\n{chr(10).join(table(cuda))}\n")
    text = INTRODUCTION.format(compilers=compilers) + "".join(lines)
    options.file.write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote {options.file}")
    if triton_faults or cuda_faults:
        sys.exit("\n".join([*triton_faults, *cuda_faults]))


if __name__ == "__main__":
    main()
