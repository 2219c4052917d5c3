"""What ships with the engine: `manifest.toml`, one card per weights set, and the files it names."""
