"""Training checkpoints, written atomically."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputError, StateError, WeightsError

FORMAT = "vosengine-checkpoint-1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Replace a checkpoint atomically: write to a temporary file, fsync, rename.

    If the machine stops or the disk is full, the previous checkpoint is intact.

    Raises  OutputError.
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
    """Load the content that `save_checkpoint` wrote, without executing code in the file.

    Raises  WeightsError if it is missing, corrupt or of another format.
    """
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
    """Check that a run may resume from a checkpoint.

    Raises  StateError that names the entries in which their identities differ.
    """
    changed = sorted(
        name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)
    )
    if changed:
        pairs = ", ".join(f"{n}: {stored.get(n)!r} there, {wanted.get(n)!r} now" for n in changed)
        raise StateError(
            f"{path}: of another run ({pairs}); resume it with its own settings, or choose another "
            "folder"
        )
