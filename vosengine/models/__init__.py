"""The networks: one file per family, each a `Method` with four verbs."""
