"""Which device a name stands for."""

from __future__ import annotations

import torch

from .errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or the CPU where there is none.

    Raises  DeviceError for a name torch does not know and for a device that is not there.
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
                "`vosengine doctor` says more, device='cpu' works everywhere"
            )
    return device
