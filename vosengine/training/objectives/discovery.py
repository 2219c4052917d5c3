"""Training objective of D-Net: foreground, centre heat map and offsets to centres."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from ...models.blocks import upsample
from ...models.method import rows_of
from ...models.target_aware.dnet import MAP_STRIDE, DNet, DNetMaps
from ...proposals import overlaps
from ..losses import binary, soft_iou
from .objective import Clips, one_hot

PAPER_SIZE = 480, 854  # (height, width) in pixels for which sigma and the weights are defined


class DiscoveryTargets(NamedTuple):
    """Targets of D-Net's maps at the network's full size."""

    foreground: torch.Tensor  # [B, H, W] 1 in any object, else 0
    heatmap: torch.Tensor  # [B, H, W] maximum of the Gaussians at all centres
    offset: torch.Tensor  # [B, 2, H, W] (y, x) from a pixel to its object's centre, in pixels


@dataclass(frozen=True)
class Discovery:
    """BCE of the foreground, squared error of the heat map and L1 of the offsets.

    Computed on consecutive frames of a clip; each frame but the first is guided by the prediction
    for the previous one, as in a stream. Maps are compared after upsampling, as for proposals.
    Centres are centres of mass (Panoptic-DeepLab's released code).

    frames   number of consecutive frames; a shorter clip gives all it has
    sigma    of the Gaussians, in pixels at the paper's size (paper). (ours) Scaled with the size,
             but at least two cells of the maps, their resolution
    centre   weight of the squared error, averaged over the frame. (ours) Four times
             Panoptic-DeepLab's, with which centres were learnt much later than the foreground
    offset   weight of the L1 error in pixels, averaged over the foreground (Panoptic-DeepLab's
             released code)
    overlap  weight of the foreground's soft IoU loss. (ours) Without it small objects have little
             weight

    (ours) Weights are scaled so that a missed centre, and an offset error relative to the frame,
    cost the same at every size.
    """

    frames: int = 2
    sigma: float = 10.0
    centre: float = 800.0
    offset: float = 0.01
    overlap: float = 1.0

    def losses(
        self, dnet: DNet, clips: Clips, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Mean losses of the frames, by name."""
        length = clips.masks.shape[1]
        count = min(self.frames, length)
        start = int(torch.randint(length - count + 1, (), generator=generator))
        chosen = slice(start, start + count)
        watched = watch(dnet, clips.frames[:, chosen])
        labels = clips.masks[:, chosen].unbind(dim=1)
        losses = [
            self.compare(*frame, clips.objects) for frame in zip(watched, labels, strict=True)
        ]
        return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}

    def score(self, dnet: DNet, clips: Clips) -> float:
        """Mean IoU of each object's best proposal over all frames with the object; 1 without
        any."""
        ious: list[float] = []
        for index, maps in enumerate(watch(dnet, clips.frames)):
            owned = one_hot(clips.masks[:, index], clips.objects)[:, 1:] > 0
            for clip, object_masks in enumerate(owned):
                visible = object_masks[object_masks.any(dim=2).any(dim=1)]
                proposals = dnet.proposals(DNetMaps(*(x[clip, None] for x in maps)))
                best = functional.pad(overlaps(visible, proposals.masks), (1, 0)).amax(dim=1)
                ious += best.tolist()
        return sum(ious) / len(ious) if ious else 1.0

    def compare(self, maps: DNetMaps, masks: torch.Tensor, objects: int) -> dict[str, torch.Tensor]:
        """Losses of one frame's maps; masks [B, H, W] at full size, ids up to `objects`."""
        height, width = masks.shape[1:]
        scale = min(height, width) / min(PAPER_SIZE)
        sigma = max(self.sigma * scale, 2 * MAP_STRIDE)
        share = sigma**2 / (height * width)  # area of a Gaussian relative to the frame
        centre = self.centre * self.sigma**2 / math.prod(PAPER_SIZE) / share
        targets = discovery_targets(masks, objects, sigma)
        logits, heatmap, offset = (upsample(x.float(), MAP_STRIDE) for x in maps)
        error = (MAP_STRIDE * offset - targets.offset).abs().sum(dim=1)
        pixels = targets.foreground.sum().clamp(min=1)
        return {
            "saliency": binary(logits[:, 0], targets.foreground).mean(),
            "overlap": self.overlap * soft_iou(logits[:, 0].sigmoid(), targets.foreground),
            "centre": centre * (heatmap[:, 0] - targets.heatmap).square().mean(),
            "offset": self.offset / scale * (error * targets.foreground).sum() / pixels,
        }


def watch(dnet: DNet, frames: torch.Tensor) -> Iterator[DNetMaps]:
    """Iterate over D-Net's maps for the frames of clips [B, T, 3, H, W], as in a stream: each frame
    is guided by the prediction for the previous one, without gradient through it."""
    clips, length = frames.shape[:2]
    encoded = dnet.encode(frames.transpose(0, 1).flatten(0, 1))
    guidance = None
    for index in range(length):
        rows = slice(index * clips, (index + 1) * clips)
        features = rows_of(encoded, rows)
        maps = dnet(features, guidance)
        yield maps
        if index + 1 < length:
            guidance = dnet.guide(frames[:, index], _guide_saliency(maps, dnet), features.deep)


def discovery_targets(masks: torch.Tensor, objects: int, sigma: float) -> DiscoveryTargets:
    """Targets for masks [B, H, W] with ids up to `objects`; sigma in pixels. An absent object has
    no centre."""
    owned = one_hot(masks, objects)[:, 1:]  # [B, O, H, W]
    y = torch.arange(masks.shape[1], device=masks.device, dtype=torch.float32)
    x = torch.arange(masks.shape[2], device=masks.device, dtype=torch.float32)
    area = owned.sum(dim=(2, 3))
    pixels = area.clamp(min=1)
    centre_y = (owned.sum(dim=3) * y).sum(dim=2) / pixels  # [B, O]
    centre_x = (owned.sum(dim=2) * x).sum(dim=2) / pixels
    from_y = (y - centre_y[:, :, None]).square()
    from_x = (x - centre_x[:, :, None]).square()
    heat = torch.exp(-(from_y[:, :, :, None] + from_x[:, :, None]) / (2 * sigma**2))
    heat = heat * (area > 0)[:, :, None, None]
    none = heat.new_zeros(len(masks), 1, *masks.shape[1:])
    foreground = owned.sum(dim=1)
    own_y = torch.einsum("bohw,bo->bhw", owned, centre_y) - y[:, None] * foreground
    own_x = torch.einsum("bohw,bo->bhw", owned, centre_x) - x * foreground
    return DiscoveryTargets(
        foreground, torch.cat((none, heat), dim=1).amax(dim=1), torch.stack((own_y, own_x), dim=1)
    )


def _guide_saliency(maps: DNetMaps, dnet: DNet) -> torch.Tensor:
    """Saliency [B, 1, H / 4, W / 4] in 0..1 that guides the next frame."""
    saliency = torch.sigmoid(maps.saliency.detach().float())
    if dnet.config.guidance == "tracks":
        return (saliency > dnet.config.saliency_threshold).float()
    return saliency
