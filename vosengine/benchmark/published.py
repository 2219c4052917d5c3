"""What the papers print of their own speed: data of the project, with its caveats."""

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
    """A row of a paper's table.

    model         ours that it is about
    source        paper and table
    milliseconds  of a frame of DAVIS at 480p
    hardware      as the paper states it, which is not this machine
    caveat        what else must be known of the figure
    variant       of the model, where the paper has several; empty: the one that is timed by default
    modules       milliseconds of its parts, where the paper splits them
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
    """All of them; imcnet has none, for its paper's table of times is not to be had."""
    file = resources.files(__package__) / "published.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple(PublishedRow(**row) for row in table["row"])


def published_of(model: str) -> tuple[PublishedRow, ...]:
    """What the papers say of one model."""
    return tuple(row for row in published_rows() if row.model == model)
