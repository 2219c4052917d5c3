"""Checkpoints: everything that a run needs to go on, on disk at any moment."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputError, StateError, WeightsError

FORMAT = "vosengine-checkpoint-1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint in place of the one that is there, or leave that one as it is.

    Written beside it, flushed to the disk, renamed over it: whenever the machine stops, and also
    where the disk is full, one whole checkpoint is there. Raises OutputError.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: the checkpoint cannot be written ({error}); the one before it is untouched"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; no code in the file is run. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint; start the run without --resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"{path}: corrupt, or no checkpoint ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path}: not one of vosengine's checkpoints (format {FORMAT})")
    return content


def check_same(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise StateError, naming what differs, unless a run may go on from this checkpoint."""
    differ = sorted(
        name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)
    )
    if differ:
        pairs = ", ".join(f"{n}: {stored.get(n)!r} there, {wanted.get(n)!r} now" for n in differ)
        raise StateError(
            f"{path}: of another run ({pairs}); resume it with its own settings, or choose another "
            "folder"
        )
