"""Mask R-CNN of torchvision as a source of proposals, with the caller's weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from ..ambient import own_settings
from ..device import choose_device
from ..errors import ConfigError, DependencyError, WeightsError
from ..frames import Array, check_frame
from ..proposals import Proposals
from ..zoo.checkpoints import read_state_dict
from ..zoo.weights import check_tensors

MODELS = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
CLASSES = "roi_heads.box_predictor.cls_score.weight"  # [classes and background, features]


class TorchvisionSource:
    """A ProposalSource: what torchvision's Mask R-CNN sees in every frame by itself.

    weights    a state dict (.pth, read with weights_only=True, or .safetensors); the classes may be
               any, and as many as the file has
    device     "auto", "cpu", "cuda"...
    threshold  a pixel belongs to a mask whose probability there is above it (0.4 in DMM)
    model      "maskrcnn_resnet50_fpn" or "maskrcnn_resnet50_fpn_v2"

    Raises  DependencyError where torchvision is not installed; ConfigError, DeviceError;
            WeightsError where the file is missing, damaged, or does not fit the model.
    """

    @own_settings()
    def __init__(
        self,
        weights: str | Path,
        *,
        device: str = "auto",
        threshold: float = 0.4,
        model: str = MODELS[0],
    ) -> None:
        if model not in MODELS:
            raise ConfigError(f"model: wanted one of {', '.join(MODELS)}, given {model!r}")
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold: wanted 0 or more and below 1, given {threshold}")
        self.device = choose_device(device)
        self.threshold = threshold
        build = getattr(_import_detection(), model)
        path = Path(weights)
        tensors = read_state_dict(path)
        if CLASSES not in tensors or tensors[CLASSES].ndim != 2:
            raise WeightsError(f"{path}: wanted the state dict of torchvision's {model}")
        detector = build(weights=None, weights_backbone=None, num_classes=tensors[CLASSES].shape[0])
        wanted = {
            name: tuple(tensor.shape)
            for name, tensor in detector.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        check_tensors(str(path), tensors, wanted)
        detector.load_state_dict(tensors, strict=False)
        self.detector = detector.eval().requires_grad_(False).to(self.device)

    @own_settings()
    def __call__(self, frame: Array, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3] RGB, uint8 or float32 in 0..1, best first. Raises
        InputError."""
        image = check_frame(frame).to(self.device)
        planes = image.permute(2, 0, 1)
        planes = planes.float() / 255 if image.dtype == torch.uint8 else planes
        found: dict[str, torch.Tensor] = self.detector([planes])[0]
        order = found["scores"].argsort(descending=True, stable=True)
        return Proposals(
            found["boxes"][order].float(),
            found["masks"][order, 0] > self.threshold,
            found["scores"][order].float(),
        )


def _import_detection() -> Any:
    try:
        return importlib.import_module("torchvision.models.detection")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DependencyError(
            f"proposals: torchvision is not installed here, or does not work ({error}); "
            'pip install "vosengine[torchvision]", or a torchvision that fits your torch'
        ) from error
