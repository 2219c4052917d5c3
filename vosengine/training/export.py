"""Export of a checkpoint to a weights file for the engine."""

from __future__ import annotations

from pathlib import Path

import torch

from ..zoo.registry import build, config_from_json
from ..zoo.weights import licence_of, save, state_of
from .checkpoint import load_checkpoint


def export(checkpoint: Path, path: Path, description: str) -> None:
    """Write the averaged weights of a checkpoint as safetensors: float16, but float32 for tensors
    of fewer than two dimensions (norms, biases).

    Raises  WeightsError if `checkpoint` is not a checkpoint; OutputError if `path` cannot be
            written.
    """
    content = load_checkpoint(checkpoint)
    model = content["identity"]["model"]
    config = config_from_json(model, content["identity"]["config"])
    with torch.device("meta"):  # only the state dict's keys are needed
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
