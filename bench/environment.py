"""Environment of a measurement: date, command, device and versions; JSON output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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


def write_json(results: dict[str, Any], path: Path, *, say: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if say:
        print(f"wrote {path}")
