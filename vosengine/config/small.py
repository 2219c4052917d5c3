"""Small configurations, one per model, for training from scratch and running on a CPU."""

from __future__ import annotations

from typing import Any

from .matching import MUNetConfig, STMConfig
from .multi_object import DMNAOAConfig, GIELConfig
from .unsupervised import IMCNetConfig, TargetAwareConfig

ModelConfig = STMConfig | MUNetConfig | DMNAOAConfig | GIELConfig | IMCNetConfig | TargetAwareConfig

MATCHING: dict[str, Any] = {
    "backbone": "resnet18",
    "width": 32,
    "key_channels": 48,
    "value_channels": 96,
    "decoder_channels": 32,
    "key_stride": 8,
    "similarity": "l2",
    "sharpness": 5.0,
    "read_masks": True,
    "norm": "group",
    "size": 256,
}

SMALL: dict[str, ModelConfig] = {
    "stm": STMConfig(**MATCHING),
    "munet": MUNetConfig(**MATCHING, radius=6),
    "giel": GIELConfig(**MATCHING, label_channels=32),
    "dmn_aoa": DMNAOAConfig(
        backbone="resnet18",
        width=32,
        base_channels=(32, 32, 64),
        norm_groups=8,
        region_size=7,
        key_channels=32,
        max_proposals=12,
        projected_channels=64,
        sharpness=30.0,
        matching_steps=10,
        matching_rounds=3,
        refine_channels=32,
        read_masks=True,
        norm="group",
        size=320,
    ),
    "imcnet": IMCNetConfig(
        backbone="resnet18",
        width=24,
        channels=32,
        alignments=2,
        norm="group",
        size=(256, 448),
    ),
    "target_aware": TargetAwareConfig(
        backbone="resnet18",
        width=24,
        aspp_channels=64,
        aspp_rates=(3, 6, 9),
        saliency_channels=64,
        instance_channels=64,
        saliency_skips=(24, 16),
        instance_skips=(24, 16),
        smallest_proposal=100,
        tracker_backbone="resnet18",
        tracker_width=16,
        tracker_size=256,
        target_channels=32,
        first_iterations=(5, 10, 10, 10),
        augmentations=2,
        samples=20,
        refiner_channels=32,
        reid_backbone="resnet18",
        reid_width=12,
        reid_channels=64,
        reid_crop=64,
        norm="group",
        size=256,
    ),
}
