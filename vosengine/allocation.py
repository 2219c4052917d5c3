"""Settings of the process's malloc (glibc)."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # parameters of mallopt(3)


@cache
def keep_freed_memory() -> bool:
    """Configure malloc to reuse freed memory instead of returning it to the system.

    By default glibc unmaps large blocks when they are freed, and the system zeroes new pages at
    the next allocation: up to a third of a step of the papers' networks on two cores. With this
    setting the process stays as large as its largest step. It applies to the whole process and
    cannot be undone: the command line calls it, a program that imports vosengine has to call it
    itself. VOSENGINE_KEEP_FREED_MEMORY=0 in the environment disables it.

    Returns  True if the setting is in effect; False if disabled, or malloc is not glibc's
    """
    if os.environ.get("VOSENGINE_KEEP_FREED_MEMORY") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # All blocks on the heap (no mmap), and the heap never trimmed.
    done: list[int] = [mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, 2**31 - 1)]
    return done == [1, 1]
