"""Version, commit and build of this installation."""

from __future__ import annotations

import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from . import __version__

PACKAGE = Path(__file__).parent


def commit() -> str:
    """The commit that was installed: noted when a wheel or an sdist was built, asked of git in a
    checkout; "unknown" elsewhere."""
    noted = PACKAGE / "commit.txt"
    if noted.is_file():
        return noted.read_text(encoding="ascii").strip()
    if not (PACKAGE.parent / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def described() -> str:
    """One line: version, commit, and whether the kernels are compiled."""
    built = find_spec("vosengine._C") is not None
    kernels = f"compiled kernels for {sysconfig.get_platform()}" if built else "no compiled kernels"
    return f"{__version__}, commit {commit()}, {kernels}"


def openmp_runtimes() -> list[str] | None:
    """Paths of the OpenMP runtimes in this process, of which there should be one; None where the
    system does not list a process's libraries."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    mapped = {line.split()[-1] for line in maps.read_text(encoding="utf-8").splitlines()}
    names = ("libgomp", "libomp", "libiomp")
    return sorted(path for path in mapped if Path(path).name.startswith(names))
