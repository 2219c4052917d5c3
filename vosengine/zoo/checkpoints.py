"""State dicts that other programs wrote, read without running what is in them."""

from __future__ import annotations

import pickle
import struct
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import WeightsError

# All that torch.load raised for thousands of truncated and damaged files, in both of its formats.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A state dict (.safetensors, or torch.save's), or that under `model` in a checkpoint, without
    `module.` in front of its names and without batch counters, on the CPU.

    Raises  WeightsError: no such file, unreadable, or something else than tensors by name.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; wanted a state dict")
    found = _read(path)
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: wanted a dict of tensors, given {type(found).__name__}")
    if isinstance(found.get("model"), dict):
        found = found["model"]
    others = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise WeightsError(f"{path}: wanted only tensors, holds also {', '.join(others)}")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return {name: found[name] for name in found if not name.endswith("num_batches_tracked")}


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: corrupt, or no safetensors file ({error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd protocols, which are then read or refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(
            f"{path}: no file that torch.load can read with weights_only ({type(error).__name__}); "
            "damaged, cut short, or something else than a state dict"
        ) from error
