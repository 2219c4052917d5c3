"""Numbers below the normal ones, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..kernels.extension import load, missing


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Within the block this thread, and those that torch shares its work with, take them as zeros.

    A sharp softmax leaves many of them, and many processors take a hundred times as long with one:
    a step of `dmn_aoa.demo` on a Xeon 183 ms, without them 105. What they add to a mask is below
    1e-37. Without the extension nothing changes.
    """
    if missing is not None:
        yield
        return
    threads = torch.get_num_threads()
    before = load().flush_denormals(True, threads)
    try:
        yield
    finally:
        if not before:
            load().flush_denormals(False, threads)
