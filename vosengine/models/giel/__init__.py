"""GIEL: the network and its support memory."""
