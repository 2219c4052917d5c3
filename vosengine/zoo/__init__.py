"""Model registry, weight cards and weights files."""
