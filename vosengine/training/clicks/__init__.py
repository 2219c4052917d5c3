"""Training of the click network: squares of photos, and a person who clicks on what is wrong."""
