"""The engine and its streams: steps, prompts, batching, post-processing, snapshots."""
