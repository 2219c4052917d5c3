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


# dtypes of the self-test: on a GPU also those that models run in.
DTYPES = {
    "cpu": (torch.float32,),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}


@dataclass(frozen=True)
class BackendReport:
    """One backend of one op on one device: whether it is chosen, and the result of its self-test.

    chosen  whether it runs by default: it is the first backend that takes the op's cases
    reason  why it does not take the op's cases here (or those of one dtype); None if it does
    tested  number of cases that ran
    fault   message of the first failing case; None if all agree with the reference
    """

    op: str
    backend: str
    device: str
    chosen: bool
    reason: str | None
    tested: int
    fault: str | None


def versions() -> dict[str, str]:
    """Versions of vosengine and its dependencies; 'not installed' for missing ones."""
    facts = {
        "vosengine": described(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def machine() -> dict[str, str]:
    """Processor, GPUs, compilers, and how the extension was built."""
    facts = {"cpu": f"{cpu_name()}, torch uses {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"sm_{properties.major}{properties.minor}"
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            chip = 10 * properties.major + properties.minor
            facts[f"cuda:{index}"] = f"{properties.name}, {capability}, {memory}{_old(chip)}"
    else:
        built = torch.version.cuda
        facts["cuda"] = (
            f"torch is built for CUDA {built}, but finds no device or driver"
            if built
            else "this torch is a CPU build; for a GPU install one built for CUDA"
        )
    for command in ("c++", "nvcc"):
        facts[command] = shutil.which(command) or "not found"
    if missing is None:
        build = load().build_info()
        listed = ", ".join(f"{name} {value}" for name, value in sorted(build.items()))
        facts["extension"] = f"{listed}; CPU kernels use {load().isa()}"
    else:
        facts["extension"] = f"{missing}: {GET_EXTENSION}"
    runtimes = openmp_runtimes()
    if runtimes is not None:
        several = "; several runtimes share the cores badly" if len(runtimes) > 1 else ""
        facts["OpenMP"] = ", ".join(runtimes) + several
    return facts


def _old(chip: int) -> str:
    """A note on the limits of a GPU older than the oldest supported one; else empty."""
    if chip >= OLDEST:
        return ""
    return (
        f"; older than sm_{OLDEST}: use float16 or float32 (bfloat16 is emulated there), "
        "Triton kernels do not run, those of vosengine._C as listed below"
    )


def self_test() -> Iterator[BackendReport]:
    """Test every backend of every op on every kind of device here against the reference."""
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
    """Join reasons by dtype; dtypes are named only if their reasons differ."""
    if len(set(reasons.values())) <= 1:
        return next(iter(reasons.values()), None)
    return "; ".join(f"{dtype}: {reason}" for dtype, reason in reasons.items())
