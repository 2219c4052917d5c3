"""Environment of a measurement: date, command, device and versions."""

from __future__ import annotations

import platform
from datetime import date
from typing import Any

import torch

from .. import __version__
from ..kernels.extension import load, missing
from ..timing import cpu_name, device_name


def describe(device: torch.device, command: str) -> dict[str, Any]:
    """Return date, command, device and versions, without host names or paths."""
    return {
        "date": date.today().isoformat(),
        "command": command,
        "device": device_name(device),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": load().isa() if missing is None else "no extension",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vosengine": __version__,
    }
