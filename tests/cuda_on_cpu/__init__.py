"""The CUDA kernels of csrc/ compiled for the CPU by the emulation beside this file."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAME = "cuda_on_cpu"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-psabi"]
# A GPU refuses what is not aligned, a CPU takes it: such an access ends the process, and says why.
SANITIZE = ["-fsanitize=alignment", "-fno-sanitize-recover=alignment"]
COMPILER = os.environ.get("CXX", "c++")

missing = (
    None if shutil.which(COMPILER.split()[0]) else f"no C++ compiler ({COMPILER}) for the emulation"
)


def _sources() -> list[Path]:
    kernels = [path for path in (ROOT / "csrc").glob("*.cu") if path.stem != "device"]
    return sorted([*kernels, ROOT / "csrc" / "bindings_cuda.cpp", *HERE.glob("*.cpp")])


def _fingerprint() -> str:
    seen = hashlib.sha256(" ".join([*FLAGS, *SANITIZE]).encode())
    for path in (*_sources(), *sorted((ROOT / "csrc").glob("*.h")), *sorted(HERE.glob("*.h"))):
        seen.update(path.name.encode() + path.read_bytes())
    return seen.hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: the others find what the first has built."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(target: Path) -> None:
    include = [f"-I{p}" for p in (HERE, ROOT / "csrc", pybind11.get_include())]
    include.append(f"-I{sysconfig.get_path('include')}")
    defines = ['-DVOSENGINE_CUDA="emulated"', '-DVOSENGINE_CUDA_DEVICE_TYPE="cpu"']
    command = [*COMPILER.split(), *FLAGS, *SANITIZE, *include, *defines, "-x", "c++"]
    jobs = []
    for source in _sources():
        compiled = target.parent / f"{target.stem}-{source.stem}.o"
        arguments = [*command, "-c", str(source), "-o", str(compiled)]
        jobs.append((source, compiled, subprocess.Popen(arguments, stderr=subprocess.PIPE)))
    for source, _, job in jobs:
        errors = job.communicate()[1].decode()
        if job.returncode != 0:
            raise RuntimeError(f"{source.name} does not compile for the CPU:\n{errors}")
    linked = target.with_suffix(".new")
    objects = [str(compiled) for _, compiled, _ in jobs]
    link = [*COMPILER.split(), "-shared", *SANITIZE, *objects, "-o", str(linked)]
    subprocess.run(link, check=True)
    linked.rename(target)
    for compiled in objects:
        Path(compiled).unlink()


@cache
def load() -> ModuleType:
    """The module of all emulated kernels, compiled where its sources have changed."""
    folder = ROOT / "build" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{NAME}-{_fingerprint()}.so"
    with _alone(folder):
        if not target.exists():
            _compile(target)
    spec = importlib.util.spec_from_file_location(NAME, target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
