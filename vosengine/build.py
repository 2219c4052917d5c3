"""Version, commit and build of this installation."""

from __future__ import annotations

import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from . import __version__

PACKAGE = Path(__file__).parent


def commit() -> str:
    """The installed commit, 12 hexadecimal digits, or "unknown".

    Read from commit.txt in a wheel or sdist, and from git in a checkout.
    """
    recorded = PACKAGE / "commit.txt"
    if recorded.is_file():
        return recorded.read_text(encoding="ascii").strip()
    if not (PACKAGE.parent / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "--short=12", "HEAD"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return process.stdout.strip()


def described() -> str:
    """Version, commit, and whether the kernels are compiled, in one line."""
    built = find_spec("vosengine._C") is not None
    kernels = f"compiled kernels for {sysconfig.get_platform()}" if built else "no compiled kernels"
    return f"{__version__}, commit {commit()}, {kernels}"


def openmp_runtimes() -> list[str] | None:
    """Paths of the OpenMP runtimes loaded in this process (there should be one).

    None if the system does not list a process's libraries in /proc.
    """
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    mapped = {line.split()[-1] for line in maps.read_text(encoding="utf-8").splitlines()}
    names = ("libgomp", "libomp", "libiomp")
    return sorted(path for path in mapped if Path(path).name.startswith(names))
