"""The backends an op's tests run on without a GPU, and the one rule of nearness to a witness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from vosengine.kernels import extension
from vosengine.kernels.dispatch import use_backend
from vosengine.kernels.parity import FLOOR_ULPS

# The reference, and C++ per instruction set.
NAMES = ("reference", "cpu baseline", "cpu avx2", "cpu avx512")

REFERENCE_ULPS = 1000  # of a reference's own rounding, against a witness in float64


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


def assert_near(got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor) -> None:
    """The rule of kernels/parity.py, with a witness's float64 numbers as the truth.

    got    what a backend returned       plain  what the reference returned in the same dtype
    """
    assert got.shape == truth.shape
    assert got.dtype == plain.dtype
    if got.numel() == 0:
        return
    eps, magnitude = torch.finfo(got.dtype).eps, max(1.0, float(truth.abs().max()))
    own = float((plain.double() - truth).abs().max())
    assert own <= REFERENCE_ULPS * eps * magnitude  # else a wrong reference would excuse anything
    allowed = 2 * own + FLOOR_ULPS * eps * magnitude
    assert torch.isfinite(got).all()
    assert float((got.double() - truth).abs().max()) <= allowed
