"""Configurations of every model over a backbone that was pretrained: what ships is one of these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .checks import LITE_MEAN, LITE_STD
from .matching import MUNetConfig, STMConfig
from .multi_object import GIELConfig
from .small import SMALL, ModelConfig

BACKBONE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "mean": LITE_MEAN,
    "std": LITE_STD,
}

LITE: dict[str, ModelConfig] = {
    "stm": STMConfig(
        **BACKBONE,
        key_channels=64,
        value_channels=96,
        decoder_channels=64,
        fine_channels=32,
        memory_encoder="shared",
        key_stride=8,
        similarity="cosine",
        sharpness=24.0,
        read_masks=True,
        size=256,
    ),
    "munet": MUNetConfig(
        **BACKBONE,
        key_channels=64,
        value_channels=96,
        decoder_channels=64,
        fine_channels=32,
        memory_encoder="shared",
        key_stride=8,
        similarity="cosine",
        sharpness=24.0,
        read_masks=True,
        size=256,
        radius=6,
    ),
    "giel": GIELConfig(
        **BACKBONE,
        key_channels=64,
        value_channels=96,
        label_channels=32,
        norm="group",
        decoder_channels=64,
        fine_channels=32,
        memory_encoder="shared",
        key_stride=8,
        similarity="cosine",
        sharpness=24.0,
        read_masks=True,
        size=256,
    ),
    "dmn_aoa": replace(SMALL["dmn_aoa"], **BACKBONE),
    "imcnet": replace(SMALL["imcnet"], **BACKBONE),
}
