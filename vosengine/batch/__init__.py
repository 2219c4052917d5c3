"""Batch processing: finding clips, processing one clip, and pools of workers."""
