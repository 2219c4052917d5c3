"""torchvision's Mask R-CNN, with the caller's weights, as a source of proposals."""

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
    """Proposals of torchvision's Mask R-CNN, frame by frame; a ProposalSource.

    weights    path of a state dict (.pth, read with weights_only=True, or .safetensors), with any
               number of classes
    device     "auto", "cpu", "cuda"...
    threshold  mask pixels have a probability above this, 0 <= threshold < 1 (0.4 in DMM)
    model      "maskrcnn_resnet50_fpn" or "maskrcnn_resnet50_fpn_v2"

    Raises  DependencyError if torchvision is not installed; ConfigError, DeviceError; WeightsError
            if the file is missing or corrupt, or does not match the model.
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
        """Proposals for a frame [H, W, 3] RGB, uint8 or float32 in 0..1, best first.

        Raises  InputError.
        """
        image = check_frame(frame).to(self.device)
        planes = image.permute(2, 0, 1)
        planes = planes.float() / 255 if image.dtype == torch.uint8 else planes
        detections: dict[str, torch.Tensor] = self.detector([planes])[0]
        order = detections["scores"].argsort(descending=True, stable=True)
        return Proposals(
            detections["boxes"][order].float(),
            detections["masks"][order, 0] > self.threshold,
            detections["scores"][order].float(),
        )


def _import_detection() -> Any:
    try:
        return importlib.import_module("torchvision.models.detection")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DependencyError(
            f"proposals: torchvision is not installed here, or does not work ({error}); "
            'pip install "vosengine[torchvision]", or a torchvision that fits your torch'
        ) from error
