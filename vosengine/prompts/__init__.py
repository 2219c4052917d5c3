"""Masks from interactive prompts: box, points, scribbles."""

from .hints import Box, Point
from .masks import METHODS, mask_from

__all__ = ["METHODS", "Box", "Point", "mask_from"]
