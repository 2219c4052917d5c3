"""Shared fixtures: tiny models, small clips, and poisoned memory."""

from __future__ import annotations

import os

# Before torch is imported: OpenMP threads that spin while they wait slow every step 20-fold where
# another process wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Export, exporter

from vosengine.config import (
    MatchingConfig,
    MemoryConfig,
    ModelConfig,
    TargetAwareConfig,
)
from vosengine.detectors.dnet import DNetSource
from vosengine.engine.segmenter import Segmenter
from vosengine.kernels import gpu
from vosengine.kernels.poison import poisoned
from vosengine.kernels.resources import Resources, table
from vosengine.training.synthetic import Clip, ClipConfig, make_clip
from vosengine.types import Result
from vosengine.zoo.registry import build, entry, list_models
from vosengine.zoo.weights import save, state_of

if gpu.INTERPRETED:
    import interpreter_bfloat16

    interpreter_bfloat16.install()

pytest_plugins = ["selection"]

DAVIS = Path(__file__).resolve().parents[2] / "shared" / "data" / "davis"


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed torch's generator, so that tests do not depend on each other."""
    torch.manual_seed(0)


MATCHING = {
    "key_channels": 8,
    "value_channels": 16,
    "decoder_channels": 8,
    "memory": MemoryConfig(max_frames=4),
}
NARROW: dict[str, dict[str, Any]] = {
    "stm": MATCHING,
    "munet": MATCHING,
    "giel": {
        "key_channels": 8,
        "value_channels": 16,
        "decoder_channels": 8,
        "label_channels": 8,
        "coarse_channels": 8,
        "stored_frames": 12,
    },
    "dmn_aoa": {
        "base_channels": (8, 8, 16),
        "norm_groups": 4,
        "key_channels": 8,
        "region_size": 7,
        "projected_channels": 16,
        "refine_channels": 8,
        "memory": MemoryConfig(max_frames=4),
    },
    "imcnet": {"channels": 16, "size": None},
    "target_aware": {
        "size": None,
        "aspp_channels": 16,
        "aspp_rates": (1, 2, 3),
        "saliency_channels": 16,
        "instance_channels": 16,
        "saliency_skips": (8, 8),
        "instance_skips": (8, 8),
        "smallest_proposal": 40,
        "tracker_backbone": "resnet18",
        "tracker_width": 8,
        "tracker_size": 96,
        "target_channels": 8,
        "samples": 10,
        "refiner_channels": 8,
        "reid_backbone": "resnet18",
        "reid_width": 8,
        "reid_channels": 16,
        "reid_crop": 32,
    },
}
# Those that match with a bank of frames per object; those that follow what a mask shows them, and
# nothing else; and those whose memory sees labels, not soft masks: rounding may flip a pixel there,
# which a random network carries on, so two streams are compared up to the first such memory.
FOLLOWERS = tuple(name for name in list_models() if entry(name).build.needs_mask)
WITH_MEMORY = tuple(n for n in list_models() if isinstance(entry(n).config(), MatchingConfig))
WITH_HARD_MASKS = ("giel",)
SELF_FINDERS = tuple(name for name in list_models() if name not in FOLLOWERS)
PROMPTED = tuple(name for name in list_models() if entry(name).build.takes_mask)
PROPOSED = tuple(name for name in list_models() if entry(name).build.takes_proposals)


def tiny_config(model: str, **changes: Any) -> ModelConfig:
    """A configuration with few channels, at the frame's own size."""
    narrow = {"backbone": "resnet18", "width": 8, **NARROW[model]}
    return entry(model).config(**{**narrow, **changes})


def tiny_source() -> DNetSource:
    """A tiny D-Net with random weights, as the proposal source of one stream."""
    config = tiny_config("target_aware")
    assert isinstance(config, TargetAwareConfig)
    return DNetSource(device="cpu", config=config, embed=False)


def make(model: str, **options: Any) -> Segmenter:
    """A Segmenter with tiny random weights, on the CPU unless another device is named; `changes` go
    into the model's config. One that needs proposals has a tiny D-Net's. In float32, whatever the
    processor likes best, unless a precision is named."""
    changes = options.pop("changes", {})
    if entry(model).build.needs_proposals and "proposals" not in options:
        options["proposals"] = tiny_source()
    options = {"device": "cpu", "precision": "fp32", **options}
    return Segmenter(model, config=tiny_config(model, **changes), **options)


def follow(segmenter: Segmenter, frames: Sequence[np.ndarray], mask: np.ndarray) -> list[Result]:
    """Step through the frames, with the mask in the first one."""
    results = [segmenter.step(frame, None if i else mask) for i, frame in enumerate(frames)]
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]


def to_the_end(segmenter: Segmenter, frames: Sequence[np.ndarray]) -> list[Result]:
    """Step through the frames without a mask, then flush; returns all results."""
    results = [segmenter.step(frame) for frame in frames]
    return [result for result in results if result is not None] + segmenter.flush()


@pytest.fixture(params=FOLLOWERS)
def model(request: pytest.FixtureRequest) -> str:
    """A test that takes this runs once for every model that follows a mask."""
    return str(request.param)


@pytest.fixture(params=WITH_MEMORY)
def matching_model(request: pytest.FixtureRequest) -> str:
    """A test that takes this runs once for every model with a bank of frames per object."""
    return str(request.param)


@pytest.fixture(params=list_models())
def any_model(request: pytest.FixtureRequest) -> str:
    """A test that takes this runs once for every model."""
    return str(request.param)


@pytest.fixture(params=PROMPTED)
def prompted_model(request: pytest.FixtureRequest) -> str:
    """A test that takes this runs once for every model that takes masks."""
    return str(request.param)


@pytest.fixture(params=sorted({*list_models()} - {*PROMPTED}))
def unprompted_model(request: pytest.FixtureRequest) -> str:
    """A test that takes this runs once for every model that takes no masks."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip() -> Clip:
    """Ten frames of 65 x 99 with two objects."""
    return make_clip(ClipConfig(frames=10, height=65, width=99, objects=(2, 2)), seed=1)


@pytest.fixture(scope="session")
def small() -> Clip:
    """Eight frames of 48 x 64 with two objects."""
    return make_clip(ClipConfig(frames=8, height=48, width=64, objects=(2, 2)), seed=1)


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a weights file of a tiny model and returns its path."""

    def write(model: str) -> Path:
        path = tmp_path / f"tiny-{model}.safetensors"
        config = tiny_config(model)
        tensors = state_of(build(model, config, seed=3))
        save(path, model, config, tensors, trained=True, description="tiny", licence="MIT")
        return path

    return write


@pytest.fixture(scope="session")
def export() -> Export:
    """Returns the folder of an export with trained weights; writes it if needed."""
    return exporter()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty and similar functions return NaN (255 for integers)."""
    with poisoned():
        yield


@pytest.fixture(scope="session")
def davis() -> Path:
    """The folder of real clips; skips the test if it is missing."""
    if not DAVIS.is_dir():
        pytest.skip("the real clips are not on this machine")
    return DAVIS


def object_ids(labels: np.ndarray) -> set[int]:
    """Object ids in a label image."""
    return set(np.unique(labels).tolist()) - {0}


RESOURCES = "kernel resources"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the resources of the kernels that this run compiled."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    recorded = [value for r in reports for name, value in r.user_properties if name == RESOURCES]
    if recorded:
        terminalreporter.section("registers / KiB of shared memory / tensor-core instructions")
        for line in table(Resources(**fields) for fields in recorded):
            terminalreporter.write_line(line)
