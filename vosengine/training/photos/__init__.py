"""Training clips made of photos: moving cut-outs on photo backgrounds, and warped photos."""
