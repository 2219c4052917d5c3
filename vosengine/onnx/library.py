"""Operator sets of an export, and the library of custom operators.

The library is C++, built with the engine's extension, without torch and Python. Any program can
register it with onnxruntime (`register_custom_ops_library`) to run graphs with operators of the
domain "vosengine".
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

from ..errors import DependencyError

KINDS = ("standard", "contrib", "vosengine")
DOMAIN = "vosengine"
VERSION = 2  # of the operators; csrc/onnxruntime/library.cpp has it too
LIBRARY = Path(__file__).resolve().parents[1] / "libvosengine_ops.so"
WITHOUT = "or export the model with --ops standard, which needs none"


def find_library(operators: Iterable[str], version: int = VERSION) -> Path:
    """Path of the library, checked to be loadable and of that version.

    operators  names for error messages, such as "vosengine::read_memory"

    Raises  DependencyError: it was not built, or is for another platform or of another version.
    """
    wanted = f"operator {', '.join(sorted(operators))}"
    if not LIBRARY.is_file():
        raise DependencyError(
            f"{wanted}: the library that has it is not there ({LIBRARY}); install vosengine where "
            f"there is a C++ compiler (on Linux), {WITHOUT}"
        )
    try:
        actual = ctypes.CDLL(str(LIBRARY)).vosengine_ops_version()
    except (OSError, AttributeError) as error:
        raise DependencyError(
            f"{wanted}: the library that has it cannot be loaded here ({error}); build vosengine "
            f"anew on this platform, {WITHOUT}"
        ) from None
    if actual != version:
        raise DependencyError(
            f"{wanted}: wanted version {version}, which the export was written for, and the "
            f"library {LIBRARY} has version {actual}; export the model anew with this vosengine, "
            f"{WITHOUT}"
        )
    return LIBRARY
