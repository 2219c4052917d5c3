"""GIEL: its network, and the frames that it keeps and reads."""
