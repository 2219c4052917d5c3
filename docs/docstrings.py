"""Docstrings for the site: aligned tables and formulas are kept as they stand, prose is Markdown.

A docstring here is prose, and blocks whose columns are aligned by spaces or that are indented. The
site would run their lines together, so each of them becomes a block of code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ALIGNED = re.compile(r"^( {2,}\S|[^\s`].*?\S {2,}\S)")


def as_markdown(text: str) -> str:
    """A docstring's text with its aligned paragraphs fenced."""
    return "\n\n".join(map(_fenced, re.split(r"\n[ \t]*\n", text)))


def _fenced(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if not any(ALIGNED.match(line) for line in lines):
        return paragraph
    language = "python" if any("segmenter" in line and "(" in line for line in lines) else "text"
    return "\n".join((f"```{language}", *lines, "```"))


class Aligned(griffe.Extension):
    """Applies `as_markdown` to every docstring that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
