"""The backends an op's tests run on without a GPU: the reference, and C++ per instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vosengine.kernels import extension
from vosengine.kernels.dispatch import use_backend

NAMES = ("reference", "cpu baseline", "cpu avx2", "cpu avx512")


@contextmanager
def running_on(name: str) -> Iterator[None]:
    """Run every op inside the block on one of NAMES; skips the test where this machine cannot."""
    backend, _, isa = name.partition(" ")
    if not isa:
        with use_backend(backend):
            yield
        return
    if extension.missing is not None:
        pytest.skip(extension.missing)
    compiled = extension.load()
    try:
        compiled.choose_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        with use_backend(backend):
            yield
    finally:
        compiled.choose_isa("auto")
