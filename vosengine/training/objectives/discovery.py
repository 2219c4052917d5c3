"""What D-Net is trained for: the foreground, the objects' centres, and the way to them."""

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
from .objective import one_hot

PAPER_SIZE = 480, 854  # pixels: what sigma and the weights are meant for


class DiscoveryTargets(NamedTuple):
    """What the maps should be, at the network's full size."""

    foreground: torch.Tensor  # [B, H, W] 1 where any object is, else 0
    heatmap: torch.Tensor  # [B, H, W] the highest Gaussian over all centres
    offset: torch.Tensor  # [B, 2, H, W] (y, x) pixels to the centre of the pixel's own object


@dataclass(frozen=True)
class Discovery:
    """Cross-entropy of the foreground, squared error of the heat map and L1 of the offsets, on
    frames of a clip that follow each other: every frame but the first is guided by what was
    predicted for the one before, as in a stream.

    The maps are compared after they have been upsampled as for proposals. Centres are the objects'
    centres of mass. [C: Panoptic-DeepLab]

    frames  that follow each other; a shorter clip gives those that it has
    sigma   of the Gaussians in pixels at the paper's size [P]; in proportion below it, but at least
            two cells of the maps, which could not show a narrower one (ours)
    centre  weight of the squared error, averaged over the frame: four times that of
            Panoptic-DeepLab, with which the foreground came long before its centres (ours)
    offset  weight of the error in pixels, averaged over the foreground [C: Panoptic-DeepLab]
    overlap weight of 1 - soft IoU of the foreground; without it small objects count little (ours)

    The weights are scaled so that a missed centre, and an offset wrong by a share of the frame,
    cost the same at every size. (ours)
    """

    frames: int = 2
    sigma: float = 10.0
    centre: float = 800.0
    offset: float = 0.01
    overlap: float = 1.0

    def losses(
        self,
        dnet: DNet,
        frames: torch.Tensor,
        masks: torch.Tensor,
        objects: int,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        """frames [B, T, 3, H, W] normalised; masks [B, T, H, W] ids up to `objects`."""
        length = masks.shape[1]
        count = min(self.frames, length)
        start = int(torch.randint(length - count + 1, (), generator=generator))
        chosen = slice(start, start + count)
        sums: dict[str, torch.Tensor] = {}
        for maps, labels in zip(
            watch(dnet, frames[:, chosen]), masks[:, chosen].unbind(dim=1), strict=True
        ):
            for name, value in self.compare(maps, labels, objects).items():
                sums[name] = sums[name] + value / count if name in sums else value / count
        return sums

    def compare(self, maps: DNetMaps, masks: torch.Tensor, objects: int) -> dict[str, torch.Tensor]:
        """Losses of a frame's maps: masks [B, H, W] with ids up to `objects`, at the full size."""
        height, width = masks.shape[1:]
        scale = min(height, width) / min(PAPER_SIZE)
        sigma = max(self.sigma * scale, 2 * MAP_STRIDE)
        share = sigma**2 / (height * width)  # of the frame, that a centre heats
        centre = self.centre * self.sigma**2 / math.prod(PAPER_SIZE) / share
        wanted = discovery_targets(masks, objects, sigma)
        logits, heatmap, offset = (upsample(each.float(), MAP_STRIDE) for each in maps)
        away = (MAP_STRIDE * offset - wanted.offset).abs().sum(dim=1)
        pixels = wanted.foreground.sum().clamp(min=1)
        return {
            "saliency": binary(logits[:, 0], wanted.foreground).mean(),
            "overlap": self.overlap * soft_iou(logits[:, 0].sigmoid(), wanted.foreground),
            "centre": centre * (heatmap[:, 0] - wanted.heatmap).square().mean(),
            "offset": self.offset / scale * (away * wanted.foreground).sum() / pixels,
        }


def watch(dnet: DNet, frames: torch.Tensor) -> Iterator[DNetMaps]:
    """The maps of every frame of clips [B, T, 3, H, W], as streams would have them: each frame is
    guided by what was predicted for the one before. No gradient goes back through that."""
    clips, length = frames.shape[:2]
    encoded = dnet.encode(frames.transpose(0, 1).flatten(0, 1))
    guidance = None
    for index in range(length):
        rows = slice(index * clips, (index + 1) * clips)
        features = rows_of(encoded, rows)
        maps = dnet(features, guidance)
        yield maps
        if index + 1 < length:
            guidance = dnet.guide(frames[:, index], _shown(maps, dnet), features.deep)


def discovery_score(dnet: DNet, frames: torch.Tensor, masks: torch.Tensor, objects: int) -> float:
    """Mean IoU of every object's best proposal, over all frames that it is in; 1 without any."""
    found: list[float] = []
    for index, maps in enumerate(watch(dnet, frames)):
        owned = one_hot(masks[:, index], objects)[:, 1:] > 0
        for clip, objects_there in enumerate(owned):
            there = objects_there[objects_there.any(dim=2).any(dim=1)]
            proposals = dnet.proposals(DNetMaps(*(x[clip, None] for x in maps)))
            best = functional.pad(overlaps(there, proposals.masks), (1, 0)).amax(dim=1)
            found += best.tolist()
    return sum(found) / len(found) if found else 1.0


def discovery_targets(masks: torch.Tensor, objects: int, sigma: float) -> DiscoveryTargets:
    """masks [B, H, W] with ids up to `objects`; sigma in pixels. An object that is not there has
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


def _shown(maps: DNetMaps, dnet: DNet) -> torch.Tensor:
    """What the next frame is told of this one."""
    saliency = torch.sigmoid(maps.saliency.detach().float())
    if dnet.config.guidance == "tracks":
        return (saliency > dnet.config.saliency_threshold).float()
    return saliency
