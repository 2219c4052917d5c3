"""The folder of one training run: nothing that was there before is written over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError, OutputError
from ..files import Given, check_output_folder, keep_apart
from .trainer import CHECKPOINT


def check_run_folder(
    folder: Path, files: Sequence[str], given: Iterable[Given], resume: bool
) -> None:
    """See that training would write over nothing: neither what it reads, nor another run, nor
    files that are the caller's.

    files   that the run writes into the folder, by name; CHECKPOINT among them
    given   what it reads
    resume  whether the run that is there is gone on with

    Raises  InputError, OutputError.
    """
    check_output_folder(folder)
    written = [folder / name for name in files]
    keep_apart(given, written)
    if resume:
        return
    if (folder / CHECKPOINT).exists():
        raise InputError(
            f"{folder}: holds a training run; go on with it by --resume, or name another folder"
        )
    there = [path for path in written if os.path.lexists(path)]
    if there:
        raise OutputError(
            f"{there[0]}: is in the way, of a run without a checkpoint or of something else; move "
            "it away or name another folder"
        )
