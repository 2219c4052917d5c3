"""torchvision's ResNets, converted, and encoders that start from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vosengine.config import STMConfig
from vosengine.models.backbone import ResNet
from vosengine.models.stm import STM
from vosengine.shipped import convert as converter
from vosengine.training.initialise import initialise_from


def released(depth: str, features: int) -> dict[str, torch.Tensor]:
    """torchvision's state dict: the names of its classifier, with random numbers."""
    torch.manual_seed(0)
    state = ResNet(depth, layer4="strided").state_dict()
    return {**state, "fc.weight": torch.randn(1000, features), "fc.bias": torch.randn(1000)}


@pytest.mark.parametrize(("depth", "features"), [("resnet18", 512), ("resnet50", 2048)])
@pytest.mark.slow
def test_every_tensor_but_the_classifier(depth: str, features: int, tmp_path: Path) -> None:
    state = released(depth, features)
    source, target = tmp_path / "source.pth", tmp_path / "target.safetensors"
    torch.save(state, source)
    assert converter.main([depth, str(source), str(target)]) == 0
    tensors = load_file(target)
    wanted = {n for n in state if not n.startswith("fc.") and "num_batches" not in n}
    assert tensors.keys() == wanted
    assert all(torch.equal(tensors[name], state[name]) for name in wanted)


@pytest.mark.slow
def test_the_paper_s_encoders_start_from_it(tmp_path: Path) -> None:
    state, source, target = (
        released("resnet18", 512), tmp_path / "source.pth", tmp_path / "target.safetensors"
    )  # fmt: skip
    torch.save(state, source)
    assert converter.main(["resnet18", str(source), str(target)]) == 0
    stm = STM(STMConfig(backbone="resnet18"))
    initialise_from(stm, target)
    for encoder in (stm.query_encoder, stm.memory_encoder):
        for name, tensor in encoder.state_dict().items():
            if name == "mask_conv.weight":
                assert not tensor.any()
            elif "num_batches" not in name:
                assert torch.equal(tensor, state[name]), name


def test_another_depth_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "source.pth", tmp_path / "target.safetensors"
    torch.save(released("resnet18", 512), source)
    assert converter.main(["resnet34", str(source), str(target)]) == 1
    assert "missing: layer1.2.bn1.bias" in capsys.readouterr().err
    assert not target.exists()
