"""Every setting of every model, written out; each constant names its source.

[P] the paper, [C] its released code or a close relative's, [O] our choice.
"""

from .checks import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, SMALLEST_SIDE, check_size
from .matching import MemoryConfig, MUNetConfig, STMConfig
from .multi_object import DMNAOAConfig, GIELConfig
from .small import SMALL, ModelConfig
from .unsupervised import IMCNetConfig, TargetAwareConfig

MatchingConfig = STMConfig | MUNetConfig | DMNAOAConfig  # those with a MemoryConfig

__all__ = [
    "BACKBONES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
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
    "check_size",
]
