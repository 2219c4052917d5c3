"""What the process's malloc does with memory that is free again."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of mallopt(3)


@cache
def keep_freed_memory() -> bool:
    """Let this process's malloc keep what is freed, for the next step; returns whether it does.

    glibc gives large blocks back to the system as soon as they are free, and the system clears
    them anew, page by page, when the next map is written: up to a third of a step of the papers'
    networks on two cores. Kept, the process stays as large as its largest step. The setting is the
    whole process's and cannot be taken back, so the command line makes it, and a program that
    imports vosengine makes it by itself, or not. With VOSENGINE_KEEP_FREED_MEMORY=0 in the
    environment it is left alone.
    """
    if os.environ.get("VOSENGINE_KEEP_FREED_MEMORY") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Blocks of every size on the heap, and none of it given back.
    done: list[int] = [mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, 2**31 - 1)]
    return done == [1, 1]
