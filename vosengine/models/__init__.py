"""The networks: one file or folder per model family, each a `Method` (see method.py)."""
