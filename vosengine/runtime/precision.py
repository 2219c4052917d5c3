"""Numeric precision of a network, and torch's process-wide float32 settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..ambient import ProcessSetting
from ..errors import ConfigError

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
PRECISIONS = (*DTYPES, "auto")


def _backends() -> tuple[Any, ...]:
    """torch's backends with a process-wide float32 precision setting."""
    backends: Any = torch.backends  # its type stubs lack these members
    return (
        *(backends.cudnn.conv, backends.cuda.matmul),
        *(backends.mkldnn.conv, backends.mkldnn.matmul),
    )


def _set_products(precisions: tuple[str, ...]) -> None:
    for backend, precision in zip(_backends(), precisions, strict=True):
        backend.fp32_precision = precision


_products = ProcessSetting(lambda: tuple(b.fp32_precision for b in _backends()), _set_products)


@dataclass(frozen=True)
class Precision:
    """A network's precision: "fp32", "tf32", "bf16" or "fp16".

    fp32        float32 with IEEE products
    tf32        float32; a GPU may round the factors of products to 10 mantissa bits
    bf16, fp16  weights and feature maps in half precision

    Softmax, norms, odds and solvers are float32 in all of them.
    """

    name: str

    @classmethod
    def choose(cls, name: str, device: torch.device) -> Precision:
        """The precision for a name; "auto": bf16 if the device supports it natively, else fp32.

        Raises  ConfigError for an unknown name, and for tf32 on a CPU.
        """
        if name not in PRECISIONS:
            wanted = ", ".join(PRECISIONS)
            raise ConfigError(f"precision: wanted one of {wanted}, given {name!r}")
        if name == "tf32" and device.type != "cuda":
            raise ConfigError("precision: tf32 is for GPUs; wanted fp32, bf16, fp16 or auto")
        if name == "auto":
            name = "bf16" if has_bf16(device) else "fp32"
        return cls(name)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager: set torch's float32 product precision for this precision.

        torch's default allows TF32 in convolutions on a GPU, and the caller's settings may allow
        reduced precision on a CPU. Threads with tf32 and with other precisions exclude each other.
        """
        with _products.hold(("tf32" if self.name == "tf32" else "ieee",) * 4):
            yield


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
