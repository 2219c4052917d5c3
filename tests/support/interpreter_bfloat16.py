"""Correct bfloat16 arithmetic for Triton's interpreter, which computes with the bits as integers.

NumPy has no bfloat16, so the interpreter stores uint16. The patch computes in float32 and rounds to
nearest even, as a GPU does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFF, rounded).astype(np.uint16)


def is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def in_float32(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widened(handle.data), tl.float32) if is_bfloat16(handle) else handle


def _cast(plain: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: Any, source: TensorHandle, wanted: Any, *rounding: Any) -> TensorHandle:
        if is_bfloat16(source) and wanted.scalar != tl.bfloat16:
            source = in_float32(source)
            return source if wanted.scalar == tl.float32 else self.cast_impl(source, wanted)
        if wanted.scalar == tl.bfloat16 and not is_bfloat16(source):
            return TensorHandle(narrowed(source.data.astype(np.float32)), tl.bfloat16)
        return plain(self, source, wanted, *rounding)

    return cast


def _elementwise(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the interpreter's unary_op, binary_op, ternary_op, fma and rsqrt."""

    def compute(self: Any, *operands: Any) -> TensorHandle:
        narrow = [isinstance(x, TensorHandle) and is_bfloat16(x) for x in operands]
        if not any(narrow) or np.where in operands:  # np.where copies bits only
            return plain(self, *operands)
        wide = [in_float32(x) if n else x for x, n in zip(operands, narrow, strict=True)]
        out = plain(self, *wide)
        if out.data.dtype != np.float32:  # a comparison
            return out
        return TensorHandle(narrowed(out.data), tl.bfloat16)

    return compute


def _dot(plain: Callable[..., Any]) -> Callable[..., Any]:
    def dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return plain(self, in_float32(a), in_float32(b), *rest)

    return dot


def install() -> None:
    """Patch the interpreter of this process."""
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(InterpreterBuilder, name, _cast(getattr(InterpreterBuilder, name)))
    for name in ("unary_op", "binary_op", "ternary_op", "create_fma", "create_rsqrt"):
        setattr(InterpreterBuilder, name, _elementwise(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = _dot(InterpreterBuilder.create_dot)
