"""The trained weights that ship: whole, small, documented, and able to follow an object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vosengine.commands.demo import Demo, make_demo_clip, score_demo
from vosengine.commands.run import run
from vosengine.config import LITE
from vosengine.zoo.registry import list_models
from vosengine.zoo.weights import cards, licence_of, load

DEMOS = {name: card for name, card in cards().items() if card.tag == "demo"}
# Mean J on a drawn clip: of what the first mask shows, or of a foreground that is to be found.
LEAST = {
    **dict.fromkeys(("stm", "munet", "giel"), 0.85),
    "dmn_aoa": 0.7,
    "imcnet": 0.25,
    "target_aware": 0.25,
}
LARGEST, TOGETHER = 16_000_000, 50_000_000  # bytes


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_a_demo_loads_and_says_where_it_comes_from(name: str) -> None:
    card = DEMOS[name]
    method, loaded = load(card.model, card.tag)
    assert loaded == card
    assert loaded == load(card.model, None)[1]  # it is the default
    assert method.config == LITE[card.model]
    assert card.trained
    assert card.bytes <= LARGEST
    assert card.licence == licence_of(method.config)
    assert card.recipe
    assert card.steps > 0
    assert card.hours > 0
    assert card.hardware
    assert card.scores
    assert card.measured.startswith("vosengine eval")
    for parameter in method.parameters():
        assert np.isfinite(parameter.numpy()).all()


def test_what_ships_is_small_and_has_a_card() -> None:
    assert {card.model for card in DEMOS.values()} == {*list_models()}
    assert sum(card.bytes for card in DEMOS.values()) <= TOGETHER
    folder = Path(__file__).resolve().parents[1] / "weights" / "demo"
    assert {f"demo/{each.name}" for each in folder.iterdir()} == {
        card.file for card in DEMOS.values()
    }


@pytest.mark.parametrize(("model", "least"), sorted(LEAST.items()))
def test_a_demo_follows_the_objects_of_a_clip(model: str, least: float, tmp_path: Path) -> None:
    demo = Demo(tmp_path, model, frames=8, height=160, width=288, seed=3)
    summary = run(make_demo_clip(demo))
    assert summary["weights"]["trained"]
    assert score_demo(demo) > least
