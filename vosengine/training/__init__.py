"""Training: for now the synthetic video that it will be fed with."""
