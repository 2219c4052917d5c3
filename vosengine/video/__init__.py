"""Reading frames from anywhere, and writing label images, overlays and videos."""

from .frame_source import FrameSource, SourceFrame, without_password
from .palette import DAVIS_PALETTE
from .sources import open_source
from .video_writer import VideoWriter
from .writers import (
    encode_labels,
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
    "encode_labels",
    "open_source",
    "overlay",
    "prepare_output_folder",
    "read_labels",
    "read_mask",
    "without_password",
    "write_labels",
]
