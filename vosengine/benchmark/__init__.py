"""Whole models timed: several ways to run each, beside the papers' own figures."""

from .endless import measure_stream
from .environment import describe
from .floor import measure_rates
from .measure import Plan, measure_point
from .published import published_of
from .report import draw, markdown_of, tables_of
from .scenes import Scene, drawn_scene, real_scene
from .streams import measure_streams, table_of_streams
from .ways import REFERENCE, WAYS

__all__ = [
    "REFERENCE",
    "WAYS",
    "Plan",
    "Scene",
    "describe",
    "draw",
    "drawn_scene",
    "markdown_of",
    "measure_point",
    "measure_rates",
    "measure_stream",
    "measure_streams",
    "published_of",
    "real_scene",
    "table_of_streams",
    "tables_of",
]
