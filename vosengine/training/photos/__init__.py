"""Training clips made of photos: cut-outs that move over other photos, and warped photos."""
