"""What a Triton kernel needs of a chip, found by compiling it ahead of time: no GPU, no driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Build:
    """One compiled form of a Triton kernel: what a tuning table makes of it on some chips.

    name        unique within the op, such as "read float16 64x512"
    signature   the type of every argument that is no constant, such as "*fp16", "i32", "fp32"
    constants   the value of every argument that is one (tl.constexpr)
    chips       compute capabilities whose tuning table asks for it, such as 90
    matrix      whether its work must be done by the tensor cores
    divisible   integer arguments that are multiples of 16 in real use; pointers always are
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
    chips: tuple[int, ...]
    matrix: bool
    divisible: tuple[str, ...] = field(default=())
