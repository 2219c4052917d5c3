"""Streams and the engine that answers for them: prompts, rules, steps, snapshots."""
