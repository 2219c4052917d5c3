"""Weights of the click network: random, from a file, or those that ship."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, WeightsError
from ..zoo.weights import WeightCard, check_tensors, demo_of, licence_of, read_file, save, state_of
from .network import ClickConfig, ClickNet

MODEL = "click"


def build_click(config: ClickConfig, seed: int = 0) -> ClickNet:
    """A click network with seeded random weights, in evaluation mode; torch's random state is
    preserved."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ClickNet(config).eval().requires_grad_(False)


def save_click(path: Path, network: ClickNet, description: str) -> None:
    """Write a weights file: float16, vectors (norms, biases) in float32. Raises OutputError."""
    state = state_of(network)
    tensors = {n: x.to(torch.float16 if x.ndim > 1 else torch.float32) for n, x in state.items()}
    save(
        path,
        MODEL,
        network.config,
        tensors,
        trained=True,
        description=description,
        licence=licence_of(network.config),
    )


def load_click(path: Path, size: int | None = None) -> tuple[ClickNet, dict[str, str]]:
    """Load a click network, on the CPU in float32, and the file's metadata.

    path  a file written by `save_click`
    size  side of the input crop, replaces that of the file's configuration

    Raises  WeightsError if the file is missing, corrupt, of another model, or its tensors do not
            match; ConfigError for an unknown configuration field.
    """
    metadata, tensors = read_file(path)
    if metadata["model"] != MODEL:
        raise WeightsError(f"{path}: holds weights of {metadata['model']}, wanted {MODEL}")
    values: dict[str, Any] = json.loads(metadata["config"])
    unknown = sorted(set(values) - {field.name for field in fields(ClickConfig)})
    if unknown:
        raise ConfigError(f"config of {MODEL}: unknown fields {', '.join(unknown)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    config = ClickConfig(**values)
    if size is not None:
        config = replace(config, size=size)
    network = build_click(config)
    check_tensors(str(path), tensors, {k: tuple(t.shape) for k, t in state_of(network).items()})
    network.load_state_dict(tensors, strict=False)
    return network, metadata


def load_shipped() -> tuple[ClickNet, WeightCard]:
    """Load click.demo and its card. Raises WeightsError if it did not ship or is corrupt."""
    path, card = demo_of(MODEL)
    return load_click(path)[0], card
