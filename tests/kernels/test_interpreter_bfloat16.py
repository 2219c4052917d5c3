"""Triton's interpreter computes with bfloat16 as a GPU would: against torch's own arithmetic."""

from __future__ import annotations

import pytest
import torch

from vosengine.kernels.gpu import tl, triton

pytestmark = pytest.mark.interpreter


@triton.jit
def _elementwise(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(out + at, x * y)
    tl.store(out + N + at, x + y)
    tl.store(out + 2 * N + at, tl.where(x > y, x, y))
    tl.store(out + 3 * N + at, (x.to(tl.float32) * 0.3).to(tl.bfloat16))


@triton.jit
def _product(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def _maximum(a, out, N: tl.constexpr):
    tl.store(out, tl.max(tl.load(a + tl.arange(0, N))))


def test_elementwise() -> None:
    a, b = torch.randn(2, 64).bfloat16()
    out = torch.empty(4, 64, dtype=torch.bfloat16)
    _elementwise[(1,)](a, b, out, 64)
    wanted = torch.stack((a * b, a + b, torch.maximum(a, b), (a.float() * 0.3).bfloat16()))
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)


def test_product() -> None:
    a, b = torch.randn(2, 32, 32).bfloat16()
    out = torch.empty(32, 32)
    _product[(1,)](a, b, out, 32)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_maximum() -> None:
    a = -torch.rand(8).bfloat16()
    out = torch.empty(1, dtype=torch.bfloat16)
    _maximum[(1,)](a, out, 8)
    assert out == a.max()
