"""Bounded memories of past frames, paged, with page pools shared by an engine's streams."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config import MemoryConfig, ModelConfig
from ..errors import ConfigError
from .adaptive import AdaptiveBank
from .bank import MemoryBank, Stored
from .pages import PagePools, Pages

__all__ = [
    "AdaptiveBank",
    "Memory",
    "MemoryBank",
    "PagePools",
    "Pages",
    "Stored",
    "make_memory",
    "memory_of",
]

Memory = MemoryBank | AdaptiveBank


def memory_of(
    model: str, config: ModelConfig, wanted: MemoryConfig | str | None
) -> MemoryConfig | None:
    """The memory configuration of a model, or None if the model has no memory.

    wanted  a MemoryConfig; a policy, which replaces that of `config.memory`; None: `config.memory`

    Raises  ConfigError if the model has no memory to configure, or the policy is unknown.
    """
    own: MemoryConfig | None = getattr(config, "memory", None)
    if wanted is None:
        return own
    if own is None:
        raise ConfigError(f"memory: {model} has no memory to set; leave it out")
    return replace(own, policy=wanted) if isinstance(wanted, str) else wanted


def make_memory(
    config: MemoryConfig,
    *,
    groups: int,
    positions: int,
    key_channels: int,
    value_channels: int,
    device: torch.device,
    dtype: torch.dtype,
    pools: PagePools | None = None,
) -> Memory:
    """Create the memory for a policy.

    groups     number of objects
    positions  grid cells per frame
    pools      page pools for policies that keep whole frames; None: new ones

    Returns  an AdaptiveBank for the policy "afb", else a MemoryBank
    """
    channels = (key_channels, value_channels)
    if config.policy == "afb":
        return AdaptiveBank(config, groups, positions, channels, device=device, dtype=dtype)
    pages = (pools or PagePools()).of(positions, channels, device=device, dtype=dtype)
    return MemoryBank(groups, config.max_frames, pages)
