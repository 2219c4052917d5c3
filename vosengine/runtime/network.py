"""From a network as it was loaded to the one that runs."""

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
    """Bring a network in evaluation mode to a device, in place.

    engine  "eager" runs it layer by layer as it was written; "fast" folds its batch norms into the
            convolutions, in the precision that it was loaded in, and lays out weights, and with
            them all maps, with the channels last, which is how the convolutions want them; rounds
            weights so that their errors cancel (see rounding.py); on a CPU a convolution also adds
            the shortcut and takes the ReLU behind it
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
    """Maps [B, C, H, W] laid out as that engine's layers give them: a file does not keep that, and
    sums in another order differ in their last bits."""
    layout = torch.contiguous_format if engine == "eager" else torch.channels_last
    return {
        name: x.contiguous(memory_format=layout) if x.ndim == 4 else x
        for name, x in features.items()
    }
