"""Train the click network on photos, in a folder of its own, on the CPU.

    python -m vosengine.training.clicks --photos PHOTOS --out RUN [--resume]

PHOTOS is a folder as `stills:` and `paste:` of `vosengine train` read it; RUN gets checkpoint.pt,
log.jsonl and weights.safetensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import VosError
from .run import ClickTraining, train_clicks


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vosengine.training.clicks", description="Train the click network."
    )
    parser.add_argument("--photos", type=Path, required=True, help="images/, masks/, regions/")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--init", type=Path, help="weights of a click network to start from")
    parser.add_argument("--resume", action="store_true", help="go on where a run stopped")
    parser.add_argument("--minutes", type=float, help="stop after so many; --resume goes on")
    for name, what in (
        ("steps", "optimiser steps"),
        ("batch", "squares in a step"),
        ("size", "of the squares' sides, a multiple of 16"),
        ("seed", "of weights, squares and clicks"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(ClickTraining, name), help=what)
    parser.add_argument("--rate", type=float, default=ClickTraining.rate, help="AdamW's greatest")
    given = parser.parse_args(arguments)
    try:
        print(train_clicks(ClickTraining(**vars(given)), print))
    except VosError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
