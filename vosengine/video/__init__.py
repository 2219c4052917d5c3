"""Frame sources, label images (masks), overlays and video files."""

from .frame_source import FrameSource, SourceFrame, without_password
from .masks import (
    AS_FOUND,
    Mask,
    MaskRule,
    MaskSequence,
    mask_files,
    read_labels,
    read_mask,
)
from .palette import DAVIS_PALETTE
from .sources import open_source
from .video_writer import VideoWriter
from .writers import encode_labels, overlay, prepare_output_folder, write_labels

__all__ = [
    "AS_FOUND",
    "DAVIS_PALETTE",
    "FrameSource",
    "Mask",
    "MaskRule",
    "MaskSequence",
    "SourceFrame",
    "VideoWriter",
    "encode_labels",
    "mask_files",
    "open_source",
    "overlay",
    "prepare_output_folder",
    "read_labels",
    "read_mask",
    "without_password",
    "write_labels",
]
