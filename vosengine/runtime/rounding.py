"""A network's numbers in half precision, rounded so that its outcome moves the least."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..models.backbone import ResNet
from ..models.efficientnet import EfficientNetLite
from ..models.mask_encoder import MaskEncoder

RUN = 16  # input channels over which the error of a rounding is handed on


def round_network(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a network to half precision, in place, all but

    - the modules that it names in `in_float32`
    - the stems of its encoders: a picture has more bits than bfloat16's eight, and all else is
      computed from it
    - what its group norms multiply and add, which a rounding would move for whole channels; not
      on a GPU, where torch wants it in the dtype of the map

    device  that it will run on
    """
    wide: set[nn.Module | None] = set()
    for name in getattr(network, "in_float32", ()):
        wide |= set(network.get_submodule(name).modules())
    for module in network.modules():
        if isinstance(module, (ResNet, EfficientNetLite, MaskEncoder)):
            wide |= {module.conv1, module.mask_conv}
            module.dtype = dtype
        elif isinstance(module, nn.GroupNorm) and device.type == "cpu":
            wide.add(module)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in wide:
            module.weight.data = rounded(module.weight.data, dtype)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point() and module not in wide:
                tensor.data = tensor.data.to(dtype)


def rounded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights [O, I, ...] in a narrower `dtype`, the error of each added to the next before that is
    rounded: along a kernel, then from one input channel to the next.

    A convolution's neighbouring inputs are alike, and behind a ReLU all of one sign, so errors of
    alternating sign cancel where independent ones would add up: error feedback, as in sigma-delta
    modulation. The errors of a run sum to half a unit in the last place of its last weight at most.
    """
    length = min(RUN, weight.shape[1]) * weight[0, 0].numel()
    flat = weight.flatten(1)
    runs = functional.pad(flat, (0, -flat.shape[1] % length)).reshape(-1, length)
    error = runs.new_zeros(len(runs))
    found = []
    for each in runs.T.contiguous():
        wanted = each + error
        found.append(wanted.to(dtype))
        error = wanted - found[-1]
    kept = torch.stack(found, dim=1).reshape(len(flat), -1)[:, : flat.shape[1]]
    return kept.reshape(weight.shape)
