"""`vosengine doctor`: report versions and hardware, and self-test every backend of every op."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata

import torch

from ..build import described, openmp_runtimes
from ..kernels import BACKENDS, OPS, Op
from ..kernels.extension import load, missing
from ..kernels.gpu import OLDEST
from ..kernels.parity import cases_of, check_parity
from ..timing import cpu_name

PACKAGES = ("torch", "triton", "numpy", "opencv-python-headless", "av", "safetensors")
GET_EXTENSION = (
    "install a C++ compiler and Python's headers (Debian: apt-get install g++ python3-dev), then "
    "pip install --force-reinstall --no-deps vosengine; until then every op runs its reference"
)


# What a self-test runs in: on a GPU the models' own dtypes as well.
DTYPES = {
    "cpu": (torch.float32,),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}


@dataclass(frozen=True)
class BackendReport:
    """One backend of one op on one device: whether it is the one that runs, and how it did.

    chosen   it is the first that takes the op's cases, so that it runs where none is asked for
    reason   why it cannot take the op's cases here (or those of one dtype); None if it can
    tested   how many cases ran; fault: what the first failing one said, None if all agree
    """

    op: str
    backend: str
    device: str
    chosen: bool
    reason: str | None
    tested: int
    fault: str | None


def versions() -> dict[str, str]:
    """Versions of what the engine stands on; 'not installed' where it is not."""
    found = {
        "vosengine": described(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, str]:
    """Processor, GPUs, compilers, and how the extension was built."""
    found = {"cpu": f"{cpu_name()}, torch uses {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"sm_{properties.major}{properties.minor}"
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            chip = 10 * properties.major + properties.minor
            found[f"cuda:{index}"] = f"{properties.name}, {capability}, {memory}{_old(chip)}"
    else:
        built = torch.version.cuda
        found["cuda"] = (
            f"torch is built for CUDA {built}, but finds no device or driver"
            if built
            else "this torch is a CPU build; for a GPU install one built for CUDA"
        )
    for command in ("c++", "nvcc"):
        found[command] = shutil.which(command) or "not found"
    if missing is None:
        facts = load().build_info()
        listed = ", ".join(f"{name} {value}" for name, value in sorted(facts.items()))
        found["extension"] = f"{listed}; CPU kernels use {load().isa()}"
    else:
        found["extension"] = f"{missing}: {GET_EXTENSION}"
    runtimes = openmp_runtimes()
    if runtimes is not None:
        several = "; several runtimes share the cores badly" if len(runtimes) > 1 else ""
        found["OpenMP"] = ", ".join(runtimes) + several
    return found


def _old(chip: int) -> str:
    """What a GPU older than the kernels' oldest has to do without."""
    if chip >= OLDEST:
        return ""
    return (
        f"; older than sm_{OLDEST}: use float16 or float32 (bfloat16 is emulated there), "
        "Triton's kernels do not run, and those of vosengine._C as the table below says"
    )


def self_test() -> Iterator[BackendReport]:
    """Every backend of every op on every kind of device here, against the reference."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for op in OPS:
        for device in devices:
            chosen = False
            for backend in BACKENDS:
                report = _test_backend(op, backend, device)
                takes = backend == "reference" or report.tested > 0
                yield replace(report, chosen=takes and not chosen)
                chosen = chosen or takes


def _test_backend(op: Op, backend: str, device: str) -> BackendReport:
    if backend == "reference":
        return BackendReport(op.name, backend, device, False, None, 0, None)
    reasons: dict[str, str] = {}
    tested = 0
    for dtype in DTYPES[device]:
        for case in cases_of(op):
            if case.bench:
                continue
            reason = op.explain(**case.arguments(device, dtype))[backend]
            if reason is not None:
                reasons.setdefault(str(dtype).removeprefix("torch."), reason)
                continue
            verdict = check_parity(op, case, backend, device=device, dtype=dtype)
            tested += 1
            if verdict.fault is not None:
                fault = f"{case.name}, {dtype}: {verdict.fault}"
                return BackendReport(op.name, backend, device, False, None, tested, fault)
    return BackendReport(op.name, backend, device, False, _joined(reasons), tested, None)


def _joined(reasons: dict[str, str]) -> str | None:
    """Reasons by dtype as one sentence; the dtypes are named where they have different ones."""
    if len(set(reasons.values())) <= 1:
        return next(iter(reasons.values()), None)
    return "; ".join(f"{dtype}: {reason}" for dtype, reason in reasons.items())
