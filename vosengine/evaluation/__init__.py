"""J and F of label images, baselines without a network, and data sets in DAVIS layout."""

from .assignment import best_ids
from .baselines import FirstMask, Frame, WarpedMask, centred_ellipse
from .layout import Annotated, find_annotated
from .measure import (
    FEWEST_FRAMES,
    Evaluation,
    Labels,
    Score,
    SequenceScore,
    measure,
    measure_folders,
    outside_void,
)
from .report import comparison, report, write_json

__all__ = [
    "FEWEST_FRAMES",
    "Annotated",
    "Evaluation",
    "FirstMask",
    "Frame",
    "Labels",
    "Score",
    "SequenceScore",
    "WarpedMask",
    "best_ids",
    "centred_ellipse",
    "comparison",
    "find_annotated",
    "measure",
    "measure_folders",
    "outside_void",
    "report",
    "write_json",
]
