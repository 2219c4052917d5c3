"""Device selection by name."""

from __future__ import annotations

import torch

from .errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The torch device for a name: "auto" (the first GPU, else the CPU), "cpu", "cuda", "cuda:N".

    Raises  DeviceError for an unknown name or a device that does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r}: wanted auto, cpu, cuda or cuda:N ({error})") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r}: wanted auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device {name!r}: torch {torch.__version__} finds {count} CUDA devices; "
                "run `vosengine doctor` for details, or use device='cpu'"
            )
    return device
