"""Shipped weights: `manifest.toml`, with one card per set of weights, and the files it names."""
