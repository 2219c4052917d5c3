"""What numbers a network computes in, and what that means on a device."""

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
    """Those of torch that multiply float32: their settings are the process's."""
    backends: Any = torch.backends  # whose types do not know their own members
    return (
        *(backends.cudnn.conv, backends.cuda.matmul),
        *(backends.mkldnn.conv, backends.mkldnn.matmul),
    )


def _set_products(chosen: tuple[str, ...]) -> None:
    for backend, each in zip(_backends(), chosen, strict=True):
        backend.fp32_precision = each


_products = ProcessSetting(lambda: tuple(b.fp32_precision for b in _backends()), _set_products)


@dataclass(frozen=True)
class Precision:
    """Softmax, norms, odds and solvers are float32 in all of them.

    fp32  float32, and products of them as exact as that
    tf32  float32, whose products a GPU may round to 10 bits of mantissa
    bf16, fp16  weights and maps
    """

    name: str

    @classmethod
    def choose(cls, name: str, device: torch.device) -> Precision:
        """That of a name; "auto" is bf16 where the chip has it without emulation, else fp32.

        Raises  ConfigError for an unknown name, and for tf32 on a CPU.
        """
        if name not in PRECISIONS:
            wanted = ", ".join(PRECISIONS)
            raise ConfigError(f"precision: wanted one of {wanted}, given {name!r}")
        if name == "tf32" and device.type != "cuda":
            raise ConfigError("precision: tf32 is a GPU's; wanted fp32, bf16, fp16 or auto")
        if name == "auto":
            name = "bf16" if has_bf16(device) else "fp32"
        return cls(name)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Products of float32 as this precision wants them, within the block or the function that
        this decorates: torch's own setting rounds those of convolutions on a GPU, and the caller's
        may round them on a CPU too. Threads under tf32 and under the others take turns."""
        with _products.held(("tf32" if self.name == "tf32" else "ieee",) * 4):
            yield


def has_bf16(device: torch.device) -> bool:
    """Whether the chip computes in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
