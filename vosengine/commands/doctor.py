"""`vosengine doctor`: what is installed, what each op can use, whether it computes right here."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch

from ..kernels import BACKENDS, OPS, Op
from ..kernels.extension import load, missing
from ..kernels.parity import cases_of, check_parity
from ..timing import cpu_name

PACKAGES = ("vosengine", "torch", "triton", "numpy", "opencv-python-headless", "av", "safetensors")
GET_EXTENSION = (
    "install a C++ compiler and Python's headers (Debian: apt-get install g++ python3-dev), then "
    "pip install --force-reinstall --no-deps vosengine; until then every op runs its reference"
)


@dataclass(frozen=True)
class BackendReport:
    """One backend of one op on one device: why it is not used, or how its self-test went.

    reason  why it cannot take the op's cases here; None if it can
    tested  how many cases ran; fault: what the first failing one said, None if all agree
    """

    op: str
    backend: str
    device: str
    reason: str | None
    tested: int
    fault: str | None


def versions() -> dict[str, str]:
    """Versions of what the engine stands on; 'not installed' where it is not."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
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
            found[f"cuda:{index}"] = f"{properties.name}, {capability}, {memory}"
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
    return found


def self_test() -> Iterator[BackendReport]:
    """Every backend of every op on every kind of device here, against the reference."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for op in OPS:
        for device in devices:
            for backend in BACKENDS:
                if backend != "reference":
                    yield _test_backend(op, backend, device)


def _test_backend(op: Op, backend: str, device: str) -> BackendReport:
    reasons, tested = [], 0
    for case in cases_of(op):
        if case.bench:
            continue
        reason = op.explain(**case.arguments(device))[backend]
        if reason is not None:
            reasons.append(reason)
            continue
        verdict = check_parity(op, case, backend, device=device)
        tested += 1
        if verdict.fault is not None:
            fault = f"{case.name}: {verdict.fault}"
            return BackendReport(op.name, backend, device, None, tested, fault)
    reason = reasons[0] if tested == 0 and reasons else None
    return BackendReport(op.name, backend, device, reason, tested, None)
