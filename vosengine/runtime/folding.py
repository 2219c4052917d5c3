"""Folding of batch norms into the preceding convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..models.backbone import Fuse, ResNet
from ..models.efficientnet import EfficientNetLite

Layer = tuple[nn.Module, str]  # a module and the name of its child


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold every batch norm that follows a convolution into it, in place; returns their number.

    A batch norm in evaluation mode is a scale and a shift per channel, which become part of the
    convolution's weight and bias; the norm is replaced by the identity. If several convolutions are
    summed before the norm (a ResNet's stem with mask channels, the fusion of two strides), each
    gets the scale and the first the shift. Group norms depend on their input and are kept.
    """
    folded = 0
    for module in list(network.modules()):
        for convolutions, (owner, name) in _chains(module):
            norm = getattr(owner, name)
            if isinstance(norm, nn.BatchNorm2d):
                _fold(convolutions, norm)
                setattr(owner, name, nn.Identity())
                folded += 1
    return folded


def _chains(module: nn.Module) -> Iterator[tuple[list[nn.Conv2d], Layer]]:
    """Convolutions whose sum is the input of a norm, and that norm's owner and name."""
    if isinstance(module, (ResNet, EfficientNetLite)):
        stem = [module.conv1] if module.mask_conv is None else [module.conv1, module.mask_conv]
        yield stem, (module, "bn1")
    elif isinstance(module, Fuse):
        yield [module.conv3, module.conv4], (module, "norm")
    elif isinstance(module, nn.Sequential):
        children = list(module.named_children())
        for (_, layer), (name, after) in pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                yield [layer], (module, name)
    else:
        for name, norm in module.named_children():
            convolution = getattr(module, name.replace("bn", "conv"), None)
            if name.startswith("bn") and isinstance(convolution, nn.Conv2d):
                assert isinstance(norm, nn.Module)
                yield [convolution], (module, name)


def _fold(convolutions: list[nn.Conv2d], norm: nn.BatchNorm2d) -> None:
    for index, convolution in enumerate(convolutions):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias if index == 0 else None,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight = nn.Parameter(weight, requires_grad=False)
        if index == 0:
            convolution.bias = nn.Parameter(bias, requires_grad=False)
