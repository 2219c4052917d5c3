"""Configurations of every model over a backbone that was pretrained: what ships is one of these."""

from __future__ import annotations

from .checks import LITE_MEAN, LITE_STD
from .matching import MUNetConfig, STMConfig
from .multi_object import GIELConfig
from .small import ModelConfig

LITE: dict[str, ModelConfig] = {
    "stm": STMConfig(
        backbone="efficientnet_lite0",
        key_channels=64,
        value_channels=96,
        decoder_channels=64,
        fine_channels=32,
        memory_encoder="shared",
        key_stride=8,
        similarity="cosine",
        sharpness=20.0,
        read_masks=True,
        size=256,
        mean=LITE_MEAN,
        std=LITE_STD,
    ),
    "munet": MUNetConfig(
        backbone="efficientnet_lite0",
        key_channels=64,
        value_channels=96,
        decoder_channels=64,
        fine_channels=32,
        memory_encoder="shared",
        key_stride=8,
        similarity="cosine",
        sharpness=20.0,
        read_masks=True,
        size=256,
        mean=LITE_MEAN,
        std=LITE_STD,
        radius=6,
    ),
    "giel": GIELConfig(
        backbone="efficientnet_lite0",
        key_channels=64,
        value_channels=96,
        label_channels=32,
        decoder_channels=64,
        fine_channels=32,
        memory_encoder="shared",
        key_stride=8,
        similarity="cosine",
        sharpness=20.0,
        read_masks=True,
        size=256,
        mean=LITE_MEAN,
        std=LITE_STD,
    ),
}
