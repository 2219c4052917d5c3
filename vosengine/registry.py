"""Every model by name: its class, its configuration, and how to get one with weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import torch

from .config import (
    DMNAOAConfig,
    GIELConfig,
    IMCNetConfig,
    MemoryConfig,
    ModelConfig,
    MUNetConfig,
    STMConfig,
    TargetAwareConfig,
)
from .errors import ConfigError
from .models.dmn_aoa import DMNAOA
from .models.giel import GIEL
from .models.imcnet import IMCNet
from .models.method import Method
from .models.munet import MUNet
from .models.stm import STM
from .models.target_aware import TargetAware


class Entry(NamedTuple):
    """How a model is made."""

    build: type[Method[Any, Any]]
    config: Callable[..., ModelConfig]
    summary: str


MODELS: dict[str, Entry] = {
    "stm": Entry(STM, STMConfig, "space-time memory, the baseline (ICCV 2019)"),
    "munet": Entry(MUNet, MUNetConfig, "motion-uncertainty-aware matching"),
    "giel": Entry(GIEL, GIELConfig, "global and instance embeddings, all objects in one pass"),
    "dmn_aoa": Entry(DMNAOA, DMNAOAConfig, "object templates matched with aligned proposals"),
    "target_aware": Entry(
        TargetAware, TargetAwareConfig, "discovers objects and follows each, without a mask"
    ),
    "imcnet": Entry(IMCNet, IMCNetConfig, "the foreground, without a mask, from three frames"),
}


def list_models() -> tuple[str, ...]:
    """The names of all models."""
    return tuple(MODELS)


def entry(name: str) -> Entry:
    """The entry of a model; raises ConfigError, listing the names, for an unknown one."""
    if name not in MODELS:
        raise ConfigError(f"model: wanted one of {', '.join(MODELS)}, given {name!r}")
    return MODELS[name]


_drawing = Lock()  # torch's generator is one for all threads


def build(name: str, config: ModelConfig, seed: int = 0) -> Method[Any, Any]:
    """A model in evaluation mode with seeded random weights, on torch's current default device.

    The same seed gives the same numbers on every machine with the same torch; the caller's random
    state is left as it was, and models that are built in several threads come one after another.
    """
    chosen = entry(name)
    if not isinstance(config, chosen.config):  # type: ignore[arg-type]
        raise ConfigError(f"config: {name} wants another class, given {type(config).__name__}")
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return chosen.build(config).eval().requires_grad_(False)


def config_to_json(config: ModelConfig) -> str:
    """A configuration as text, the way a weights file carries it."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def config_from_json(name: str, text: str) -> ModelConfig:
    """The inverse; raises ConfigError for a field that this version does not know."""
    fields = json.loads(text)
    unknown = _unknown(fields, entry(name).config)
    unknown += [f"memory.{key}" for key in _unknown(fields.get("memory", {}), MemoryConfig)]
    if unknown:
        raise ConfigError(f"config of {name}: unknown fields {', '.join(unknown)}")
    if "memory" in fields:
        fields["memory"] = MemoryConfig(**fields["memory"])
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return entry(name).config(**fields)


def _unknown(fields: dict[str, Any], config: Any) -> list[str]:
    """The names in `fields` that a configuration class has not."""
    return sorted(set(fields) - {field.name for field in dataclasses.fields(config)})
