"""Speeds published in the papers, with caveats (published.toml)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class PublishedRow:
    """Row of a paper's table.

    model         name of the model in this project
    source        paper and table
    milliseconds  per frame of DAVIS at 480p
    hardware      as the paper states it
    caveat        conditions of the figure
    variant       of the model, if the paper has several; empty: the default one
    modules       milliseconds of its parts, if the paper lists them
    """

    model: str
    source: str
    milliseconds: float
    hardware: str
    caveat: str
    variant: str = ""
    modules: dict[str, float] = field(default_factory=dict)


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Return all rows; imcnet has none, since its paper's table of times is not available."""
    file = resources.files(__package__) / "published.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple(PublishedRow(**row) for row in table["row"])


def published_of(model: str) -> tuple[PublishedRow, ...]:
    """Return the rows of one model."""
    return tuple(row for row in published_rows() if row.model == model)
