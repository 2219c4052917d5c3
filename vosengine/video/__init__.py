"""Reading frames from anywhere, and writing label images, overlays and videos."""

from .frame_source import FrameSource, SourceFrame
from .palette import DAVIS_PALETTE
from .sources import open_source
from .writers import (
    VideoWriter,
    overlay,
    prepare_output_folder,
    read_labels,
    read_mask,
    write_labels,
)

__all__ = [
    "DAVIS_PALETTE",
    "FrameSource",
    "SourceFrame",
    "VideoWriter",
    "open_source",
    "overlay",
    "prepare_output_folder",
    "read_labels",
    "read_mask",
    "write_labels",
]
