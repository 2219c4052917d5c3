"""Models as ONNX graphs: what writes them (`export`) and what runs them without torch.

`OnnxSegmenter` wants numpy and onnxruntime alone. `export_model` wants torch, onnx and onnxscript,
which are imported when it is first used.
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
