"""Configurations of all models; every constant names its source.

[P] the paper, [C] its released code or that of a related method, (ours) our own choice.
"""

from .checks import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LITE_MEAN,
    LITE_STD,
    NATIVE,
    RESNETS,
    SMALLEST_SIDE,
    WorkingSize,
    check_size,
    check_working_size,
    read_working_size,
)
from .lite import LITE
from .matching import MemoryConfig, MUNetConfig, STMConfig
from .multi_object import DMNAOAConfig, GIELConfig
from .small import SMALL, ModelConfig
from .unsupervised import IMCNetConfig, TargetAwareConfig

MatchingConfig = STMConfig | MUNetConfig | DMNAOAConfig  # those with a MemoryConfig

__all__ = [
    "BACKBONES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LITE",
    "LITE_MEAN",
    "LITE_STD",
    "NATIVE",
    "RESNETS",
    "SMALL",
    "SMALLEST_SIDE",
    "DMNAOAConfig",
    "GIELConfig",
    "IMCNetConfig",
    "MUNetConfig",
    "MatchingConfig",
    "MemoryConfig",
    "ModelConfig",
    "STMConfig",
    "TargetAwareConfig",
    "WorkingSize",
    "check_size",
    "check_working_size",
    "read_working_size",
]
