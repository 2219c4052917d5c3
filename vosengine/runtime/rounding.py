"""Conversion of a network to half precision, with error feedback in the rounding of weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..models.backbone import ResNet
from ..models.efficientnet import EfficientNetLite
from ..models.mask_encoder import MaskEncoder

RUN = 16  # input channels over which rounding errors are propagated


def round_network(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Convert a network to half precision, in place, except for

    - the modules listed in its `in_float32`
    - the stems of its encoders: an image has more than bfloat16's 8 bits, and everything depends on
      it
    - on a CPU, the weight and bias of group norms, whose rounding shifts whole channels (on a GPU
      torch requires the dtype of the feature map)

    device  the device it will run on
    dtype   torch.bfloat16 or torch.float16
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
    """Round weights [O, I, ...] to a narrower `dtype` with error feedback (sigma-delta modulation).

    The rounding error of each weight is added to the next one, along the kernel and then across
    input channels, in runs of RUN channels. A convolution's neighbouring inputs are similar, and of
    one sign after a ReLU, so that errors of alternating sign cancel. The errors of a run sum to at
    most half a unit in the last place of its last weight.
    """
    length = min(RUN, weight.shape[1]) * weight[0, 0].numel()
    flat = weight.flatten(1)
    runs = functional.pad(flat, (0, -flat.shape[1] % length)).reshape(-1, length)
    error = runs.new_zeros(len(runs))
    columns = []
    for column in runs.T.contiguous():
        exact = column + error
        columns.append(exact.to(dtype))
        error = exact - columns[-1]
    unpadded = torch.stack(columns, dim=1).reshape(len(flat), -1)[:, : flat.shape[1]]
    return unpadded.reshape(weight.shape)
