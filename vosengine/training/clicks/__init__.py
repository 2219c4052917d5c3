"""Training of the click network: square photo crops and simulated clicks."""
