"""How a network is run: as it was written, or as the machine likes it best."""

from .folding import fold_batch_norms
from .network import ENGINES, in_layout, prepare_network

__all__ = ["ENGINES", "fold_batch_norms", "in_layout", "prepare_network"]
