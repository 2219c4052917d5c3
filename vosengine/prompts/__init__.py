"""From what a person marks in a picture (a box, points, scribbles) to a mask."""

from .hints import Box, Point
from .masks import METHODS, mask_from

__all__ = ["METHODS", "Box", "Point", "mask_from"]
