"""Exports of networks on EfficientNet-Lite, whose memory takes features instead of the frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Export, answers, both, differing, draw_clip

from vosengine import MemoryConfig, OnnxSegmenter, Segmenter
from vosengine.config import LITE
from vosengine.training.initialise import start_gently
from vosengine.zoo.registry import build
from vosengine.zoo.weights import save, state_of


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a narrow `stm` with random weights that carry masks."""
    changes: dict[str, Any] = {"key_channels": 16, "value_channels": 16, "size": 64}
    changes["sharpness"] = 300.0  # random features are alike, and still the mask is carried
    config = replace(
        LITE["stm"],
        decoder_channels=16,
        fine_channels=8,
        memory=MemoryConfig(max_frames=4),
        **changes,
    )  # type: ignore[call-arg]
    method = build("stm", config, 0)
    with torch.no_grad():
        start_gently(method)
    path = tmp_path_factory.mktemp("lite") / "lite-stm.safetensors"
    save(path, "stm", config, state_of(method), trained=True, description="x", licence="MIT")
    return path


@pytest.mark.parametrize("model", ["stm", "munet"])
def test_a_stream_of_graphs_is_torchs(model: str, narrow: Path, export: Export) -> None:
    """`munet` with the weights that ship, whose export other tests have too."""
    if model == "munet":
        segmenter, reference = both(export(model))
        assert reference.method.config.memory_encoder == "shared"
    else:
        folder = export(model, narrow, size=(64, 96), max_objects=2)
        segmenter = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
        options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "engine": "eager"}
        reference = Segmenter(model, weights=narrow, size=(64, 96), **options)
    clip = draw_clip((72, 100), 2, frames=7)
    prompts = {0: clip.masks[0], 4: clip.masks[4]}
    outputs, wanted = (answers(engine, clip.frames, prompts) for engine in (segmenter, reference))
    assert differing(outputs, wanted) < 1e-3
    assert any((labels > 0).any() for labels in wanted[1:4])
