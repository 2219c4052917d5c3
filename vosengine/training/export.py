"""From a checkpoint to the weights file that the engine loads."""

from __future__ import annotations

from pathlib import Path

import torch

from ..zoo.registry import build, config_from_json
from ..zoo.weights import licence_of, save, state_of
from .checkpoint import load_checkpoint


def export(checkpoint: Path, path: Path, description: str) -> None:
    """Write the averaged weights of a checkpoint as safetensors, in half precision; what norms
    multiply and add, and biases, which take no room, in single.

    Raises  WeightsError for what is no checkpoint; OutputError where nothing can be written.
    """
    content = load_checkpoint(checkpoint)
    model = content["identity"]["model"]
    config = config_from_json(model, content["identity"]["config"])
    with torch.device("meta"):  # only its names are wanted
        names = state_of(build(model, config)).keys()
    averaged = {name: content["averaged"][name] for name in names}
    tensors = {n: x.to(torch.float16 if x.ndim > 1 else torch.float32) for n, x in averaged.items()}
    save(
        path,
        model,
        config,
        tensors,
        trained=True,
        description=description,
        licence=licence_of(config),
    )
