"""Training: data sources, augmentation, objectives, the training loop and weight export."""
