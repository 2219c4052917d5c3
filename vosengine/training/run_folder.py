"""Checks of a training run's output folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError, OutputError
from ..files import Given, check_output_folder, keep_apart
from .trainer import CHECKPOINT


def check_run_folder(
    folder: Path, files: Sequence[str], inputs: Iterable[Given], resume: bool
) -> None:
    """Check that training would overwrite no input, no other run and no other file.

    files   names of the files that the run writes into the folder, CHECKPOINT included
    inputs  input files
    resume  the run in the folder is resumed

    Raises  InputError if the folder has another run; OutputError if a file is in the way.
    """
    check_output_folder(folder)
    written = [folder / name for name in files]
    keep_apart(inputs, written)
    if resume:
        return
    if (folder / CHECKPOINT).exists():
        raise InputError(
            f"{folder}: holds a training run; go on with it by --resume, or name another folder"
        )
    existing = [path for path in written if os.path.lexists(path)]
    if existing:
        raise OutputError(
            f"{existing[0]}: is in the way and belongs to no run with a checkpoint; move it away "
            "or name another folder"
        )
