"""Benchmark of whole models: variants of running each, compared with the papers' figures."""

from .environment import describe
from .long_stream import measure_stream
from .measure import Plan, measure_point
from .published import published_of
from .report import draw, markdown_of, tables_of
from .roofline import measure_rates
from .scenes import Scene, drawn_scene, real_scene
from .streams import measure_streams, table_of_streams
from .variants import REFERENCE, VARIANTS

__all__ = [
    "REFERENCE",
    "VARIANTS",
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
