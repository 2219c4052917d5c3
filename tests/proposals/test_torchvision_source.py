"""torchvision's Mask R-CNN as a source, with a stub of torchvision, and without it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vosengine.detectors import open_proposals
from vosengine.detectors.torchvision import CLASSES, TorchvisionSource
from vosengine.errors import ConfigError, DependencyError, InputError, WeightsError
from vosengine.proposals import check_proposals


class Predictor(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, classes)


class MaskRCNN(nn.Module):
    """The part of torchvision that TorchvisionSource uses: names, input and output."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = Predictor(classes, width)
        self.norm = nn.BatchNorm2d(width)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert not self.training
        self.seen = images
        height, width = images[0].shape[1:]
        masks = torch.zeros(2, 1, height, width)
        masks[0, 0, :5], masks[0, 0, 5:9], masks[1, 0, :, 3] = 0.4, 0.41, 1.0
        return [
            {
                "boxes": torch.tensor([[0.0, 0, 9, 9], [3, 0, 4, 9]]),
                "labels": torch.tensor([1, 2]),
                "scores": torch.tensor([0.3, 0.8]),
                "masks": masks,
            }
        ]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import torchvision.models.detection` gives a module with two small Mask R-CNNs."""

    def builder(width: int) -> Any:
        def build(*, weights: None, weights_backbone: None, num_classes: int) -> MaskRCNN:
            assert weights is None and weights_backbone is None  # nothing is fetched
            return MaskRCNN(num_classes, width)

        return build

    detection: Any = ModuleType("torchvision.models.detection")
    detection.maskrcnn_resnet50_fpn, detection.maskrcnn_resnet50_fpn_v2 = builder(4), builder(6)
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", detection)


def state(classes: int = 3, width: int = 4) -> dict[str, torch.Tensor]:
    return MaskRCNN(classes, width).state_dict()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["m.pth", "checkpoint.pth", "m.safetensors"])
def test_masks_are_cut_at_the_threshold_and_come_best_first(name: str, tmp_path: Path) -> None:
    weights = state()
    if name.endswith(".safetensors"):
        save_file(weights, tmp_path / name)
    else:
        torch.save(weights if name == "m.pth" else {"model": weights}, tmp_path / name)
    source = open_proposals(f"torchvision:{tmp_path / name}", "cpu")
    assert isinstance(source, TorchvisionSource)
    frame = np.full((40, 50, 3), 51, np.uint8)
    proposals = source(frame, 0)
    check_proposals(proposals, (40, 50))
    assert proposals.scores.tolist() == pytest.approx([0.8, 0.3])
    assert proposals.boxes.tolist() == [[3, 0, 4, 9], [0, 0, 9, 9]]
    rows = proposals.masks.sum(dim=2)
    assert rows[0].tolist() == [1] * 40
    assert rows[1].tolist() == [0] * 5 + [50] * 4 + [0] * 31  # 0.4 itself is not above 0.4
    assert source.detector.seen[0].shape == (3, 40, 50)
    torch.testing.assert_close(source.detector.seen[0], torch.full((3, 40, 50), 0.2))
    tensors = source.detector.state_dict()
    assert all(torch.equal(tensors[key], value) for key, value in weights.items())
    lower = TorchvisionSource(tmp_path / name, device="cpu", threshold=0.39)
    assert int(lower(torch.from_numpy(frame) / 255, 0).masks[1].sum()) == 9 * 50


@pytest.mark.usefixtures("stand_in")
def test_the_second_version_is_an_option(tmp_path: Path) -> None:
    torch.save(state(width=6), tmp_path / "v2.pth")
    TorchvisionSource(tmp_path / "v2.pth", device="cpu", model="maskrcnn_resnet50_fpn_v2")
    with pytest.raises(WeightsError, match=r"misshapen: norm.bias"):
        TorchvisionSource(tmp_path / "v2.pth", device="cpu")
    with pytest.raises(ConfigError, match="model: wanted one of maskrcnn_resnet50_fpn, "):
        TorchvisionSource(tmp_path / "v2.pth", model="resnet50")
    with pytest.raises(ConfigError, match="threshold: wanted 0 or more and below 1, given 1"):
        TorchvisionSource(tmp_path / "v2.pth", threshold=1)
    with pytest.raises(InputError, match=r"^frame: "):
        TorchvisionSource(tmp_path / "v2.pth", device="cpu", model="maskrcnn_resnet50_fpn_v2")(
            np.zeros((40, 50), np.uint8), 0
        )


@pytest.mark.usefixtures("stand_in")
def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    with pytest.raises(WeightsError, match="no such file"):
        TorchvisionSource(path, device="cpu")
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"no file that torch.load can read"):
        TorchvisionSource(path, device="cpu")
    (tmp_path / "m.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="corrupt, or no safetensors"):
        TorchvisionSource(tmp_path / "m.safetensors", device="cpu")
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="wanted the state dict of torchvision's maskrcnn"):
        TorchvisionSource(path, device="cpu")
    torch.save({CLASSES: torch.zeros(3, 4), "more": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"(?s)missing: norm.bias.*extra: more"):
        TorchvisionSource(path, device="cpu")


def test_without_torchvision_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what Python does for a missing module
    wanted = re.escape('pip install "vosengine[torchvision]"')
    with pytest.raises(DependencyError, match=wanted):
        open_proposals(f"torchvision:{tmp_path / 'm.pth'}", "cpu")
