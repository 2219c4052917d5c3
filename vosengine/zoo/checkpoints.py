"""Safe reading of state dicts written by other programs."""

from __future__ import annotations

import pickle
import struct
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import WeightsError

# Exceptions of torch.load observed for thousands of truncated and corrupt files, in both formats.
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
    """Read a state dict from a .safetensors file or a torch.save file, onto the CPU.

    In a checkpoint, the dict under `model` is used. A `module.` prefix (DataParallel) and the batch
    counters of norms are removed.

    Raises  WeightsError if the file is missing or unreadable, or does not hold tensors by name.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; wanted a state dict")
    state = _read(path)
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: wanted a dict of tensors, given {type(state).__name__}")
    if isinstance(state.get("model"), dict):
        state = state["model"]
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise WeightsError(f"{path}: wanted only tensors, holds also {', '.join(others)}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: state[name] for name in state if not name.endswith("num_batches_tracked")}


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: corrupt, or no safetensors file ({error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about unusual pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(
            f"{path}: no file that torch.load can read with weights_only ({type(error).__name__}); "
            "corrupt, truncated, or not a state dict"
        ) from error
