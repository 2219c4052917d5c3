"""Exports of networks on EfficientNet-Lite, whose memory takes features instead of the frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Export, answers, both, differing, drawn

from vosengine import MemoryConfig, OnnxSegmenter, Segmenter
from vosengine.config import LITE
from vosengine.training.initialise import start_gently
from vosengine.zoo.registry import build
from vosengine.zoo.weights import save, state_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`weights("stm")`: file of a narrow network with random weights that propagate masks."""
    folder = tmp_path_factory.mktemp("lite")

    def write(model: str) -> Path:
        changes: dict[str, Any] = {"key_channels": 16, "value_channels": 16, "size": 64}
        changes["sharpness"] = 300.0  # random features are alike, and still the mask is carried
        if model != "giel":
            changes["memory"] = MemoryConfig(max_frames=4)
        else:
            changes |= {"support": 3, "product": False}
        config = replace(LITE[model], decoder_channels=16, fine_channels=8, **changes)  # type: ignore[call-arg]
        method = build(model, config, 0)
        with torch.no_grad():
            start_gently(method)
        path = folder / f"lite-{model}.safetensors"
        save(path, model, config, state_of(method), trained=True, description="x", licence="MIT")
        return path

    return write


@pytest.mark.parametrize("model", ["stm", "munet", "giel"])
def test_a_stream_of_graphs_is_torchs(model: str, weights: Any, export: Export) -> None:
    """`munet` with the shipped weights; the export is shared with other tests."""
    if model == "munet":
        ours, theirs = both(export(model))
        assert theirs.method.config.memory_encoder == "shared"
    else:
        path = weights(model)
        folder = export(model, path, max_objects=2)
        ours = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
        theirs = Segmenter(model, weights=path, device="cpu", precision="fp32", engine="eager")
    clip = drawn((72, 100), 2, frames=7)
    prompts = {0: clip.masks[0], 4: clip.masks[4]}
    found, wanted = (answers(engine, clip.frames, prompts) for engine in (ours, theirs))
    assert differing(found, wanted) < 1e-3
    assert any((labels > 0).any() for labels in wanted[1:4])
