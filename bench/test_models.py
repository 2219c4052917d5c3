"""Whole models with pytest-benchmark: `pytest bench/`, `pytest bench/ --benchmark-compare`...

The variants and scenes are those of `vosengine bench`, at a small size and with the shipped
weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vosengine import keep_freed_memory
from vosengine.benchmark import VARIANTS, Plan, Scene, drawn_scene
from vosengine.benchmark.measure import Cell, Runner
from vosengine.benchmark.variants import Variant
from vosengine.device import choose_device
from vosengine.zoo.registry import entry, list_models

DEVICE = choose_device("auto")
SIZE = (480, 854) if DEVICE.type == "cuda" else (240, 432)
PLAN = Plan(weights="demo", warm_up=2)


@pytest.fixture(scope="session")
def scene() -> Scene:
    keep_freed_memory()  # as the command line does
    return drawn_scene(SIZE)


@pytest.fixture
def runner(model: str, objects: int, variant: Variant, scene: Scene) -> Iterator[Runner]:
    unsupported = variant.unsupported(model, DEVICE)
    if unsupported is not None:
        pytest.skip(unsupported)
    if objects > 1 and not entry(model).build.takes_mask:
        pytest.skip("segments a single foreground")
    yield Runner(Cell(variant.name, objects, SIZE), model, variant, scene, DEVICE, PLAN)
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("model", list_models())
def test_step(model: str, objects: int, variant: Variant, runner: Runner, benchmark: Any) -> None:
    benchmark.group = f"{model}, {objects} objects, {SIZE[0]}x{SIZE[1]}"
    benchmark.pedantic(runner.step, rounds=10)
    assert len(runner.cell.labels) == 10
