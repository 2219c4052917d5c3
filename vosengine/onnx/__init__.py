"""Export of models to ONNX graphs, and running the exports without torch.

`OnnxSegmenter` needs only numpy and onnxruntime. `export_model` needs torch, onnx and onnxscript,
which are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export import ExportOptions, export_model
    from .segmenter import OnnxSegmenter

_HOMES = {
    "ExportOptions": "export",
    "OnnxSegmenter": "segmenter",
    "export_model": "export",
}

__all__ = ["ExportOptions", "OnnxSegmenter", "export_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vosengine.onnx' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
