"""IMCNet's official checkpoint layout: imported strictly, and right to the last probability."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import to_the_end
from imcnet_transcription import official_shapes, random_state, transcribe

from vosengine.config import IMAGENET_MEAN, IMAGENET_STD
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import WeightsError
from vosengine.shipped.convert import convert, convert_imcnet
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.zoo.registry import build
from vosengine.zoo.weights import load

ROOT = Path(__file__).resolve().parents[2]

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def released() -> Tensors:
    return random_state("resnet18", seed=0)


@pytest.fixture(scope="module")
def converted(released: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the command line, from a checkpoint that contains more than the weights."""
    folder = tmp_path_factory.mktemp("imcnet")
    torch.save({"model": released, "epoch": 3}, folder / "checkpoint.pth")
    command = ["convert.py", "imcnet", folder / "checkpoint.pth", folder / "ours.safetensors"]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT / "weights",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tensors, sha256 " in done.stdout
    return folder / "ours.safetensors"


@pytest.mark.slow
def test_a_converted_checkpoint_gives_the_probabilities_of_the_transcription(
    released: Tensors, converted: Path
) -> None:
    clip = make_clip(ClipConfig(frames=9, height=96, width=128, objects=(2, 2)), seed=4)
    segmenter = Segmenter(
        "imcnet", weights=converted, device="cpu", precision="fp32", size="native"
    )
    assert segmenter.card.trained
    results = to_the_end(segmenter, clip.frames)
    images = torch.from_numpy(clip.frames.astype(np.float64) / 255)
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (IMAGENET_MEAN, IMAGENET_STD))
    prepared = ((images - mean) / std).permute(0, 3, 1, 2)
    seen = []
    for t in (0, 4, 7):
        frames = [prepared[min(max(t + offset, 0), 8)][None] for offset in (-4, 0, 4)]
        wanted = transcribe(released, frames)[0, 0]
        probabilities = results[t].probabilities[1]
        assert (probabilities - wanted).abs().max() < 1e-4
        assert torch.equal(results[t].labels, (probabilities > 0.5).to(torch.uint8))
        seen.append(wanted)
    spread = torch.stack(seen)
    assert spread.std() > 0.05
    assert (spread[0] - spread[2]).abs().max() > 0.01


@pytest.mark.parametrize("depth", ["resnet50", "resnet101"])
@pytest.mark.slow
def test_the_other_backbones_are_recognised(depth: str) -> None:
    shapes = official_shapes(depth)
    names = {n: s for n, s in shapes.items() if not n.endswith("num_batches_tracked")}
    checkpoint = {name: torch.zeros(shape) for name, shape in names.items()}
    config, tensors = convert_imcnet("x.pth", checkpoint)
    assert config.backbone == depth
    with torch.device("meta"):
        state = build("imcnet", config).state_dict()
    assert set(tensors) == {name for name in state if not name.endswith("num_batches_tracked")}


def test_every_tensor_has_one_home(released: Tensors) -> None:
    """Numbered tensors come out once each: none is left out or doubled."""
    floats = {n: t for n, t in released.items() if not n.endswith("num_batches_tracked")}
    numbered = {n: torch.full_like(t, i) for i, (n, t) in enumerate(floats.items())}
    _, tensors = convert_imcnet("x.pth", numbered)
    numbers = sorted(int(tensor.flatten()[0]) for tensor in tensors.values())
    assert numbers == list(range(len(floats)))


@pytest.mark.slow
def test_missing_extra_and_misshapen_tensors_stop_it(released: Tensors, tmp_path: Path) -> None:
    full = {name: torch.zeros(shape) for name, shape in official_shapes("resnet101").items()}
    del full["decoder.l3.conv1.bias"]
    full["decoder.l7.weight"] = torch.zeros(1)
    full["K_r3.Key.weight"] = torch.zeros(64, 2048, 1, 1)
    torch.save({"model": full}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError) as caught:
        convert("imcnet", tmp_path / "bad.pth", tmp_path / "out.safetensors")
    message = str(caught.value)
    assert "3 tensors do not fit" in message
    assert "missing: decoder.l3.conv1.bias [64]" in message
    assert "extra: decoder.l7.weight" in message
    assert re.search(r"misshapen: K_r3\.Key\.weight: wanted \[64, 2048, 3, 3\]", message)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_the_file_says_what_it_is(converted: Path) -> None:
    method, card = load("imcnet", converted, None)
    assert method.config.backbone == "resnet18"
    assert "checkpoint.pth" in card.description
