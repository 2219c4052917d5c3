"""Check an installed wheel without a checkout or a compiler; run by `make wheel`.

env -i PATH=ENVIRONMENT/bin python check_wheel.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import vosengine
from vosengine.build import commit, openmp_runtimes
from vosengine.kernels import OPS
from vosengine.kernels.extension import load
from vosengine.kernels.parity import cases_of, check_parity
from vosengine.onnx.library import find_library

ISAS = "baseline", "avx2", "avx512", "amx"


def run(*arguments: str) -> str:
    """Output of the installed command; its failure ends the check."""
    command = [sys.executable, "-m", "vosengine", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_instruction_sets() -> None:
    """Every case of every op in C++, by each instruction set of this processor."""
    for isa in ISAS:
        try:
            load().choose_isa(isa)
        except ValueError as error:
            print(f"{isa}: not tested: {error}")
            continue
        count = 0
        for op in OPS:
            for case in cases_of(op):
                if case.bench or op.explain(**case.arguments())["cpu"] is not None:
                    continue
                verdict = check_parity(op, case, "cpu")
                if verdict.fault is not None:
                    sys.exit(f"{isa}: {op.name}, {case.name}: {verdict.fault}")
                count += 1
        print(f"{isa}: {count} cases agree")
    load().choose_isa("auto")


def check_demo() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "demo")
        print(run("demo", "--out", str(out), "--frames", "8").splitlines()[-1])
        masks = list(out.rglob("0000*.png"))
        if len(masks) < 8:
            sys.exit(f"demo: wanted 8 masks below {out}, found {len(masks)}")


def main() -> None:
    installed = Path(vosengine.__file__).parent
    if (installed.parent / ".git").exists():
        sys.exit(f"{installed} is a checkout; wanted an installed wheel")
    for compiler in ("c++", "g++", "clang++", "nvcc"):
        if shutil.which(compiler) is not None:
            sys.exit(f"{compiler} is on the PATH; wanted an environment without a compiler")
    if commit() == "unknown":
        sys.exit("the wheel does not say of which commit it is")
    print(run("--version").strip())
    check_instruction_sets()
    runtimes = openmp_runtimes()
    if runtimes is not None and len(runtimes) != 1:
        sys.exit(f"wanted one OpenMP runtime, found {runtimes}")
    print(f"OpenMP: {runtimes}")
    print(f"operators for onnxruntime: {find_library(['vosengine::read_memory']).name}")
    run("doctor")
    check_demo()


if __name__ == "__main__":
    main()
