"""README.md is short and begins with what a visitor needs."""

from __future__ import annotations

import re

from pages import ROOT, page

README = page("README.md")
MOST_LINES = 150
MOST_BYTES = 150_000  # of all pictures


def test_it_is_short_and_shows_first_how_to_try_it() -> None:
    assert len(README.text.splitlines()) < MOST_LINES
    first_screen = README.text.split("\n## What it does")[0]
    assert "![" in first_screen
    assert README.blocks("python")[0] in first_screen
    assert "make demo\nmake test\n" in first_screen


def test_its_limits_are_said() -> None:
    limits = README.text.split("\n## Limits\n")[1].split("\n## ")[0]
    assert "No GPU has run it." in limits
    assert "one CPU core" in limits


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = re.findall(r"`?make ([a-z]+)`?", README.text)
    assert {"demo", "test", "serve", "docs"} <= {*named}
    assert {*named} <= {*targets}


def test_its_scores_are_those_of_the_cards() -> None:
    from vosengine.zoo.weights import cards

    limits = README.text.split("\n## Limits\n")[1]
    for model in ("giel", "stm", "munet", "dmn_aoa", "target_aware", "imcnet"):
        (score,) = re.findall(rf"`{model}` (0\.\d+)", limits)
        assert float(score) == cards()[f"{model}.demo"].scores["ten real clips, mean J"]


def test_the_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert sum(path.stat().st_size for path in pictures) < MOST_BYTES
    for path in pictures:
        assert f"docs/pictures/{path.name}" in README.text
