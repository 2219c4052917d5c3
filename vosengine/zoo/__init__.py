"""Every model by name, and weights with their cards."""
