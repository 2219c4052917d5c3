"""How a network is run: as it was written, or as the machine likes it best."""

from .folding import fold_batch_norms
from .network import ENGINES, in_layout, prepare_network
from .precision import PRECISIONS, Precision, has_bf16

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Precision",
    "fold_batch_norms",
    "has_bf16",
    "in_layout",
    "prepare_network",
]
