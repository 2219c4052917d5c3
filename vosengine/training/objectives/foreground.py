"""Training objective of IMCNet: union of all objects, in the output and the side maps."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...models.imcnet import IMCNet
from ..losses import binary_of, soft_iou, structural
from ..samples import Batch
from .objective import Objective, check_sides, iou_of_each, normalised


class IMCNetObjective(Objective[IMCNet]):
    """BCE + IoU + (1 - SSIM) on the output, BCE + IoU averaged over the side maps.

    Consecutive frames of a clip take the place of frames `step` apart in a stream, because training
    clips are already sampled with time steps. (ours) No SSIM on side maps, which at stride 32 are
    smaller than its window, and no BCE weights: the released code has both, but the paper does not
    give the weights.
    """

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        seen = self._draw(batch, 1, generator)
        output, sides, foreground = self._predict(batch, seen)
        target = foreground[:, seen.shape[1] // 2]
        side_losses = [_side(side[:, 0], foreground.flatten(0, 1)) for side in sides]
        return {
            "bce": binary_of(output, target).mean(),
            "iou": soft_iou(output, target),
            "ssim": structural(output, target),
            "sides": torch.stack(side_losses).mean(),
        }

    @torch.no_grad()
    def score(self, batch: Batch) -> float:
        """Mean IoU of the foreground over frames with all neighbours."""
        length = batch.masks.shape[1]
        seen = self._draw(batch, length, torch.Generator().manual_seed(0))
        output, _, foreground = self._predict(batch, seen)
        mask, target = output > self.method.config.threshold, foreground[:, seen.shape[1] // 2] > 0
        return float(iou_of_each(mask, target).mean())

    def _predict(
        self, batch: Batch, seen: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Run the network on frames [N, S] from `_draw`.

        Returns  output [N, H, W] in 0..1, side maps [N * S, 1, h, w], and the union of all objects
                 in the frames [N, S, H, W], 0 or 1
        """
        method = self.method
        check_sides(batch.frames, method.stride)
        seen = seen.to(batch.frames.device)
        rows, inverse = torch.unique(seen, return_inverse=True)
        frames = normalised(batch.frames.flatten(0, 1)[rows], method.config)
        encoded = method.encode(frames)
        *maps, keys = (x[inverse] for x in encoded)
        attention = method.affinity(keys, maps[3]).flatten(0, 1)
        features, sides = method.propagation([x.flatten(0, 1) for x in maps], attention)
        output = method.decode(features.unflatten(0, seen.shape))[:, 0]
        return output, sides, (batch.masks.flatten(0, 1)[seen] > 0).float()

    def _draw(self, batch: Batch, centres: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `centres` frames per clip from those with all neighbours: indices clip * T + frame
        [N, S] of each and its neighbours. Without such frames, the end frames are repeated, as in a
        stream."""
        clips, length = batch.masks.shape[:2]
        reach = self.method.config.neighbours
        first, last = reach, length - 1 - reach
        if first > last:
            first, last = 0, length - 1
        count = min(centres, last - first + 1)
        order = torch.rand(clips, last - first + 1, generator=generator).argsort(dim=1)
        middle = first + order[:, :count, None]
        steps = torch.arange(-reach, reach + 1)
        near = (middle + steps).clamp(0, length - 1)
        return (near + length * torch.arange(clips)[:, None, None]).flatten(0, 1)


def _side(side: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """BCE + IoU of a side map [N, h, w] in 0..1 with the average-pooled foreground."""
    share = functional.adaptive_avg_pool2d(foreground, (side.shape[1], side.shape[2]))
    return binary_of(side, share).mean() + soft_iou(side.float(), share)
