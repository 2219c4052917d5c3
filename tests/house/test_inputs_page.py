"""Every section of docs/inputs.md names its tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_section_names_tests_that_are_there() -> None:
    page = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        if not body.strip():
            continue
        (held_by,) = re.findall(r"^Tests: (.*)\.$", body, re.MULTILINE)
        for name in re.findall(r"`([^`]*)`", held_by):
            assert (ROOT / name).is_file(), f"{title}: {name}"
