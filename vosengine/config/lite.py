"""Configurations with a pretrained backbone, one per model; those of the weights that ship."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import small
from .checks import LITE_MEAN, LITE_STD
from .matching import MemoryConfig, MUNetConfig, STMConfig
from .multi_object import GIELConfig
from .small import ModelConfig
from .unsupervised import TargetAwareConfig

SMALL: dict[str, Any] = {**small.SMALL}  # Any: mypy rejects `replace` on a union
BACKBONE: dict[str, Any] = {
    "backbone": "efficientnet_lite0",
    "mean": LITE_MEAN,
    "std": LITE_STD,
}
# Matching models read the 30 closest positions, so that the weight of a small object does not
# decrease as the memory grows.
MATCHING: dict[str, Any] = {
    **BACKBONE,
    "key_channels": 64,
    "value_channels": 96,
    "decoder_channels": 64,
    "fine_channels": 32,
    "memory_encoder": "shared",
    "key_stride": 8,
    "similarity": "cosine",
    "sharpness": 24.0,
    "top_k": 30,
    "read_masks": True,
    "size": 352,
}
FRAMES = MemoryConfig(max_frames=6)  # the time of a step grows with the number of frames

LITE: dict[str, ModelConfig] = {
    "stm": STMConfig(**MATCHING, memory=FRAMES),
    "munet": MUNetConfig(**MATCHING, memory=FRAMES, radius=6),
    "giel": GIELConfig(**MATCHING, label_channels=32, norm="group"),
    "dmn_aoa": replace(
        SMALL["dmn_aoa"],
        **BACKBONE,
        base_channels=(32, 64, 96),
        projected_channels=96,
        refine_channels=64,
        top_k=8,
        size=480,
    ),
    "target_aware": TargetAwareConfig(
        **BACKBONE,
        aspp_channels=64,
        aspp_rates=(3, 6, 9),
        saliency_channels=64,
        instance_channels=64,
        saliency_skips=(32, 24),
        instance_skips=(32, 24),
        centre_window=41,
        smallest_proposal=900,
        guide="shared",
        tracker_backbone="efficientnet_lite0",
        tracker_stride=16,
        tracker_size=352,
        normalised=True,
        target_channels=48,
        first_iterations=(5, 10, 10, 10),
        augmentations=2,
        samples=20,
        refiner_channels=48,
        reid_backbone="efficientnet_lite0",
        reid_stride=16,
        reid_channels=64,
        reid_crop=96,
        verified_mask="own",
        birth_score=0.75,
        norm="group",
        size=320,
    ),
    "imcnet": replace(
        SMALL["imcnet"],
        **BACKBONE,
        neck=(24, 40, 64, 128),
        channels=48,
        threshold=0.8,
        size=(384, 672),
    ),
}
