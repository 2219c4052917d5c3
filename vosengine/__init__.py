"""vosengine: streaming video object segmentation.

The public names are imported on first use, so that `import vosengine` and the command line's
--help stay fast: importing torch takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .allocation import keep_freed_memory
    from .config import (
        DMNAOAConfig,
        GIELConfig,
        IMCNetConfig,
        MemoryConfig,
        MUNetConfig,
        STMConfig,
        TargetAwareConfig,
    )
    from .detectors import open_proposals
    from .detectors.dnet import DNetSource
    from .detectors.file import FileSource, write_proposals
    from .detectors.torchvision import TorchvisionSource
    from .engine.engine import Engine
    from .engine.segmenter import Segmenter
    from .engine.video import segment_video
    from .errors import VosError
    from .onnx import OnnxSegmenter
    from .proposals import Proposals, ProposalSource
    from .types import Result
    from .zoo.registry import list_models

__version__ = "0.1.0"

_HOMES = {
    "DMNAOAConfig": "config",
    "DNetSource": "detectors.dnet",
    "Engine": "engine.engine",
    "FileSource": "detectors.file",
    "GIELConfig": "config",
    "IMCNetConfig": "config",
    "MUNetConfig": "config",
    "MemoryConfig": "config",
    "ProposalSource": "proposals",
    "OnnxSegmenter": "onnx.segmenter",
    "Proposals": "proposals",
    "Result": "types",
    "STMConfig": "config",
    "Segmenter": "engine.segmenter",
    "TargetAwareConfig": "config",
    "TorchvisionSource": "detectors.torchvision",
    "VosError": "errors",
    "keep_freed_memory": "allocation",
    "list_models": "zoo.registry",
    "open_proposals": "detectors",
    "segment_video": "engine.video",
    "write_proposals": "detectors.file",
}

__all__ = [
    "DMNAOAConfig",
    "DNetSource",
    "Engine",
    "FileSource",
    "GIELConfig",
    "IMCNetConfig",
    "MUNetConfig",
    "MemoryConfig",
    "OnnxSegmenter",
    "ProposalSource",
    "Proposals",
    "Result",
    "STMConfig",
    "Segmenter",
    "TargetAwareConfig",
    "TorchvisionSource",
    "VosError",
    "keep_freed_memory",
    "list_models",
    "open_proposals",
    "segment_video",
    "write_proposals",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vosengine' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
