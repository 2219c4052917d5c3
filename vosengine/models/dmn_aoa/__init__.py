"""DMN-AOA: the network and its mask refinement by aligned reference frames."""
