"""Command line: train the click network on photos, on the CPU.

    python -m vosengine.training.clicks --photos PHOTOS --out RUN [--resume]

PHOTOS is a folder in the layout of `stills:` and `paste:` (`vosengine train`). checkpoint.pt,
log.jsonl and weights.safetensors are written to RUN.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import VosError
from .run import ClickTraining, train_clicks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vosengine.training.clicks", description="Train the click network."
    )
    parser.add_argument("--photos", type=Path, required=True, help="images/, masks/, regions/")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and weights")
    parser.add_argument("--init", type=Path, help="weights of a click network to start from")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_argument("--minutes", type=float, help="stop after this time; --resume continues")
    for name, text in (
        ("steps", "optimiser steps"),
        ("batch", "squares per step"),
        ("size", "side of the squares in pixels, a multiple of 16"),
        ("seed", "seed of weights, squares and clicks"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(ClickTraining, name), help=text)
    parser.add_argument("--rate", type=float, default=ClickTraining.rate, help="peak learning rate")
    options = parser.parse_args(arguments)
    try:
        print(train_clicks(ClickTraining(**vars(options)), print))
    except VosError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
