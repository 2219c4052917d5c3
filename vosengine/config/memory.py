"""What a stream's memory keeps: the caller's wish, or the model's own setting."""

from __future__ import annotations

from dataclasses import replace

from ..errors import ConfigError
from .matching import MemoryConfig
from .small import ModelConfig


def memory_of(
    model: str, config: ModelConfig, wanted: MemoryConfig | str | None
) -> MemoryConfig | None:
    """`wanted`, or its policy alone, or None for the configuration's own; None of a model that has
    no memory. Raises ConfigError where such a one is wanted to have some."""
    own: MemoryConfig | None = getattr(config, "memory", None)
    if wanted is None:
        return own
    if own is None:
        raise ConfigError(f"memory: {model} has no memory to set; leave it out")
    return replace(own, policy=wanted) if isinstance(wanted, str) else wanted
