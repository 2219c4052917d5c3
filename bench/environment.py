"""What a measurement needs beside its numbers: where, when, with what, and by which command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from vosengine.benchmark import environment

RESULTS = Path(__file__).resolve().parent / "results"


def describe(device: torch.device) -> dict[str, Any]:
    """Date, command, device and versions; nothing that names the machine."""
    words = ["python", f"bench/{Path(sys.argv[0]).name}", *_arguments()]
    return environment.describe(device, " ".join(words))


def _arguments() -> list[str]:
    """What was asked for, less paths of this machine: where to write it, where data lies."""
    words = list(sys.argv[1:])
    if "--data" in words:
        words[words.index("--data") + 1] = "DAVIS"
    if "--folder" in words:
        at = words.index("--folder")
        del words[at : at + 2]
    return words


def write_json(found: dict[str, Any], path: Path, *, say: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if say:
        print(f"wrote {path}")
