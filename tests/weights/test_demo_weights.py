"""The shipped trained weights: complete, small, documented, and able to follow an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from vosengine.commands.demo import Demo, make_demo_clip, score_demo
from vosengine.commands.run import run
from vosengine.config import LITE
from vosengine.prompts import Point, mask_from
from vosengine.prompts.crop import box_of
from vosengine.prompts.network import ClickConfig
from vosengine.prompts.weights import MODEL, load_shipped
from vosengine.training.clicks.simulation import next_click
from vosengine.training.synthetic import ClipConfig, make_clip
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
SMALLER = 4_000_000  # of the click network
# J of it on the drawn clip, whose textures it has never been shown: a click may do harm there.
FROM_A_BOX, FROM_CLICKS = 0.7, 0.65


@pytest.mark.parametrize("name", sorted(DEMOS))
@pytest.mark.slow
def test_a_demo_loads_and_says_where_it_comes_from(name: str) -> None:
    card = DEMOS[name]
    network: nn.Module
    if card.model == MODEL:
        network, loaded = load_shipped()
        config: Any = network.config
        assert config == ClickConfig()
        assert card.bytes <= SMALLER
        assert card.measured.startswith("python bench/clicks.py")
    else:
        network, loaded = load(card.model, card.tag)
        config = network.config
        assert loaded == load(card.model, None)[1]  # it is the default
        assert config == LITE[card.model]
        assert card.bytes <= LARGEST
        assert card.measured.startswith("vosengine eval")
    assert loaded == card
    assert card.trained
    assert card.licence == licence_of(config)
    assert card.recipe
    assert card.steps > 0
    assert card.hours > 0
    assert card.hardware
    assert card.scores
    for parameter in network.parameters():
        assert np.isfinite(parameter.numpy()).all()


def test_what_ships_is_small_and_has_a_card() -> None:
    assert {card.model for card in DEMOS.values()} == {*list_models(), MODEL}
    assert sum(card.bytes for card in DEMOS.values()) <= TOGETHER
    folder = Path(__file__).resolve().parents[2] / "weights" / "demo"
    assert {f"demo/{file.name}" for file in folder.iterdir()} == {
        card.file for card in DEMOS.values()
    }


@pytest.mark.parametrize(("model", "least"), sorted(LEAST.items()))
@pytest.mark.slow
def test_a_demo_follows_the_objects_of_a_clip(model: str, least: float, tmp_path: Path) -> None:
    demo = Demo(tmp_path, model, frames=8, height=160, width=288, seed=3)
    summary = run(make_demo_clip(demo))
    assert summary["weights"]["trained"]
    assert score_demo(demo) > least


def test_the_click_network_finds_what_is_marked() -> None:
    clip = make_clip(ClipConfig(frames=2, height=240, width=432, objects=(2, 2)), seed=3)
    frame = clip.frames[0]
    for number in (1, 2):
        truth = clip.masks[0] == number
        box = box_of(truth.astype(np.uint8))
        mask = mask_from(frame, box=box)
        scores = [overlap(mask, truth)]
        points: list[Point] = []
        for _ in range(3):
            click = next_click(mask > 0, truth, made=points)
            assert click is not None
            points.append(click)
            mask = mask_from(frame, box=box, points=points, previous=mask, method="click")
            scores.append(overlap(mask, truth))
        assert scores[0] > FROM_A_BOX and scores[-1] > FROM_CLICKS


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(((mask > 0) & truth).sum() / ((mask > 0) | truth).sum())
