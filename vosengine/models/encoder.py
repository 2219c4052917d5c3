"""Encoder factory by backbone name."""

from __future__ import annotations

from ..config import RESNETS
from .backbone import ResNet
from .efficientnet import EfficientNetLite

Encoder = ResNet | EfficientNetLite


def make_encoder(
    backbone: str,
    width: int,
    mask_channels: int = 0,
    layer4: str | None = None,
    norm: str = "batch",
    key_stride: int = 16,
) -> Encoder:
    """Make a ResNet or an EfficientNet-Lite encoder; see there for the options.

    width, norm  ignored by EfficientNet-Lite, which has fixed ones
    """
    if backbone in RESNETS:
        return ResNet(backbone, width, mask_channels, layer4, norm, key_stride)
    return EfficientNetLite(backbone, mask_channels, layer4, key_stride)
