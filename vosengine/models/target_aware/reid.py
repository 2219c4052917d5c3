"""ReID of target-aware U-VOS: an embedding of length 1 per box.

The structure of PReMVOS's network, also used by UnOVOST, with a plain ResNet as backbone.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ...config import TargetAwareConfig
from ..encoder import make_encoder

SMALLEST_SPAN = 1e-6  # pixels; keeps the mean over an empty span defined


class ReID(nn.Module):
    """ReID network: crop of each box, ResNet, global mean, linear projection, L2 norm."""

    def __init__(self, config: TargetAwareConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_encoder(
            config.reid_backbone,
            config.reid_width,
            layer4="strided" if config.reid_stride == 32 else None,
            norm=config.norm,
        )
        self.project = nn.Linear(self.backbone.channels[-1], config.reid_channels)

    def forward(self, frame: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, C] float32 of length 1.

        frame  [1, 3, H, W] prepared
        boxes  [N, 4] (left, top, right, bottom; pixels, the last two exclusive)
        """
        if len(boxes) == 0:
            return frame.new_zeros(0, self.config.reid_channels, dtype=torch.float32)
        return self.embed(self.crop(frame, boxes))

    def crop(self, frame: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Input crops [N, 3, reid_crop, reid_crop] of the boxes; arguments as in `forward`."""
        config = self.config
        grown = grow_boxes(boxes, config.reid_smallest_box, config.reid_context)
        return crop_boxes(frame, grown, config.reid_crop)

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, C] float32 of length 1, from the crops of `crop`."""
        pyramid = self.backbone(crops)
        deepest = pyramid.r4 if pyramid.r5 is None else pyramid.r5
        pooled = deepest.mean(dim=(2, 3))
        return functional.normalize(self.project(pooled).float(), dim=1)


def grow_boxes(boxes: torch.Tensor, smallest: float, context: float) -> torch.Tensor:
    """Enlarge boxes [N, 4] about their centres: sides of at least `smallest`, times `context`."""
    low, high = boxes[:, :2], boxes[:, 2:]
    centre, half = (low + high) / 2, (high - low).clamp(min=smallest) * (context / 2)
    return torch.cat((centre - half, centre + half), dim=1)


def crop_boxes(frame: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Crop boxes and stretch them to squares: [1, C, H, W], [N, 4] -> [N, C, size, size].

    Pixel j of the frame covers [j, j + 1] and has its value at j + 1/2; between these points the
    frame is bilinear, outside it is 0 (the mean colour). With s = width / size frame pixels per
    crop pixel, column i has its centre at

        x = left + (i + 1/2) s

    and is the bilinear value at x if s <= 1, else the mean over a span of s - 1 around x, so that
    every pixel of a large box counts. That mean is the limit of sampling on ever finer grids. No
    size depends on the boxes' values, so it does not synchronise. Rows are treated alike.

    boxes  (left, top, right, bottom) in pixels, each side > 0
    """
    left, top, right, bottom = boxes.float().unbind(dim=1)
    columns = _sampling(left, right, frame.shape[3], size)
    rows = _sampling(top, bottom, frame.shape[2], size)
    narrow = torch.einsum("cyx,nix->ncyi", frame[0].float(), columns)
    return torch.matmul(rows[:, None], narrow).to(frame.dtype)


def _sampling(low: torch.Tensor, high: torch.Tensor, pixels: int, size: int) -> torch.Tensor:
    """Resampling weights [N, size, pixels] along one axis, from frame pixels to crop pixels.

    The mean over a span of the bilinear weight max(0, 1 - |d|) at distance d is the same hat with
    three rounded corners; in this form there is no cancellation for short spans.
    """
    scale = ((high - low) / size)[:, None]
    half_span = (scale - 1).clamp(min=SMALLEST_SPAN)[:, :, None] / 2
    steps = torch.arange(size, dtype=low.dtype, device=low.device)
    samples = low[:, None] + (steps + 0.5) * scale  # [N, size]
    centres = torch.arange(pixels, dtype=low.dtype, device=low.device) + 0.5
    d = samples[:, :, None] - centres
    ends = _rounding(d + 1, half_span) + _rounding(d - 1, half_span)
    return (1 - d.abs()).clamp(min=0) + ends - 2 * _rounding(d, half_span)


def _rounding(x: torch.Tensor, half_span: torch.Tensor) -> torch.Tensor:
    """Mean of max(0, u) over x - half_span < u < x + half_span, minus max(0, x)."""
    return (half_span - x.abs()).clamp(min=0).square() / (4 * half_span)
