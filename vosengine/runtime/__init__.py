"""Network execution: folding, layout, precision, captured graphs and frame upload."""

from .folding import fold_batch_norms
from .graphs import GraphCache, copied, graph_maker
from .network import ENGINES, in_layout, prepare_network
from .precision import PRECISIONS, Precision, has_bf16
from .upload import Uploader

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "GraphCache",
    "Precision",
    "Uploader",
    "copied",
    "fold_batch_norms",
    "graph_maker",
    "has_bf16",
    "in_layout",
    "prepare_network",
]
