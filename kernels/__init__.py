"""The engine's operators: each op is one function with one contract and several backends.

Dimension letters, used in every docstring and every shape pattern:

    B  batch            O  objects           G  groups (one memory each)   T  memory frames
    H  W  pixels        h  w  cells          C  channels (Ck key, Cv value)
    K  tracks           J  samples per track D  channels between two layers
    P = h * w           query positions      N = T * P                     memory positions
    M  proposals        Q  positions per proposal     S  sets of values that share scores

An op is called like a function. `op.explain(...)` returns, for every backend, None or the reason
why it cannot run the call; `with use_backend("reference"):` selects a backend by name.
"""

from .align_object import align_object
from .correlate_frames import correlate_frames
from .deform_conv import deform_conv
from .dispatch import BACKENDS, Op, UnsupportedBackend, stand_in, use_backend
from .finish_masks import finish_masks
from .fit_target import fit_target
from .group_centres import group_centres
from .match_proposals import match_proposals
from .pool_regions import pool_regions
from .prepare_frame import prepare_frame
from .read_memory import read_memory
from .shapes import ShapeError

OPS: tuple[Op, ...] = (
    prepare_frame,
    correlate_frames,
    read_memory,
    deform_conv,
    pool_regions,
    group_centres,
    fit_target,
    align_object,
    match_proposals,
    finish_masks,
)

__all__ = [
    "BACKENDS",
    "OPS",
    "Op",
    "ShapeError",
    "UnsupportedBackend",
    "align_object",
    "correlate_frames",
    "deform_conv",
    "finish_masks",
    "fit_target",
    "group_centres",
    "match_proposals",
    "pool_regions",
    "prepare_frame",
    "read_memory",
    "stand_in",
    "use_backend",
]
