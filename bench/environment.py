"""What the programs share: options, the environment of a measurement, ratios, memory, JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vosengine.benchmark import environment

RESULTS = Path(__file__).resolve().parent / "results"


def describe(device: torch.device) -> dict[str, Any]:
    """Return date, command, device and versions, without host names or paths."""
    words = ["python", f"bench/{Path(sys.argv[0]).name}", *_arguments()]
    return environment.describe(device, " ".join(words))


def _arguments() -> list[str]:
    """Return the command-line arguments without paths of this machine (output and data folders)."""
    words = list(sys.argv[1:])
    if "--data" in words:
        words[words.index("--data") + 1] = "DAVIS"
    if "--folder" in words:
        at = words.index("--folder")
        del words[at : at + 2]
    return words


def parser_of(text: str | None, *, device: bool = True) -> argparse.ArgumentParser:
    """Return a parser of the options that programs share; `text` is the program's docstring."""
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    return parser


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of the ratio within a round."""
    return round(float(np.median(np.divide(above, below))), 3)


def resident_mib(process: int) -> float:
    """Return the resident MiB of a process; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_json(results: dict[str, Any], path: Path, *, say: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if say:
        print(f"wrote {path}")
