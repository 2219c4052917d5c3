"""DMN-AOA: its network, and references that are moved onto the frame."""
