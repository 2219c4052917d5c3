"""Preparation of a loaded network for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from ..models.convolve import pack_convolutions
from .folding import fold_batch_norms
from .rounding import round_network

N = TypeVar("N", bound=nn.Module)

ENGINES = ("fast", "eager")


def prepare_network(
    network: N, device: torch.device, dtype: torch.dtype, engine: str = "fast"
) -> N:
    """Move a network in evaluation mode to a device and dtype, in place; returns it.

    engine  "eager": no further change. "fast": fold batch norms into convolutions, in the
            precision of the loaded weights; channels-last weights, and so feature maps; in half
            precision, weights rounded with error feedback (see rounding.py); on a CPU, convolutions
            fused with the following shortcut addition and ReLU
    """
    if engine == "eager":
        return network.to(device, dtype)
    fold_batch_norms(network)
    if torch.finfo(dtype).bits < 32:
        round_network(network, device, dtype)
        network.to(device)
    else:
        network.to(device, dtype)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        pack_convolutions(network)
    return network


def in_layout(features: Mapping[str, torch.Tensor], engine: str) -> dict[str, torch.Tensor]:
    """Restore the memory format of feature maps [B, C, H, W] that the engine's layers produce.

    Files do not preserve it, and another format changes the summation order and so the last bits.
    """
    layout = torch.contiguous_format if engine == "eager" else torch.channels_last
    return {
        name: x.contiguous(memory_format=layout) if x.ndim == 4 else x
        for name, x in features.items()
    }
