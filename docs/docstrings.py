"""Docstrings for the site: lists of arguments become lists, formulas are kept as they stand.

A docstring here is prose, paragraphs of names with their meanings in columns aligned by spaces,
and indented formulas and code. Markdown would run the lines of the latter two together.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

NAMED = re.compile(r"^(\S(?:.*?\S)?) {2,}(\S.*)$")  # "name  meaning"


def as_markdown(text: str) -> str:
    """A docstring as Markdown, paragraph by paragraph."""
    return "\n\n".join(map(_paragraph, re.split(r"\n[ \t]*\n", text)))


def _paragraph(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if not lines:
        return paragraph
    if all(line.startswith(" ") for line in lines):
        language = "python" if re.search(r"segmenter|segment_video", paragraph) else "text"
        return "\n".join((f"```{language}", *(line[4:] for line in lines), "```"))
    if NAMED.match(lines[0]):
        return _names(lines)
    return paragraph


def _names(lines: list[str]) -> str:
    """Names with their meanings as a list; what is indented goes on with the meaning above."""
    items: list[str] = []
    for line in lines:
        found = NAMED.match(line)
        if found:
            items.append(f"- `{found[1]}`: {found[2]}")
        else:
            items[-1] += f" {line.strip()}"
    return "\n".join(items)


class Aligned(griffe.Extension):
    """Applies `as_markdown` to every docstring that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
