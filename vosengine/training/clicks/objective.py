"""Training objective of the click network: masks after the first mark and after later clicks."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ...models.backbone import Pyramid
from ...prompts.crop import box_of
from ...prompts.network import ClickNet, Seen, as_seen
from ...runtime.network import prepare_network
from ..losses import binary, hardest, soft_iou
from ..objectives.objective import Objective, iou_of_each, normalised
from ..samples import Batch
from .simulation import Marks, drawn_box, spoilt

# Probabilities that the first mark is a box, or a click on a corrupted mask; else a click alone.
BOXES, SPOILT = 0.7, 0.1
MOST_CLICKS = 3  # maximum number of clicks after the first mark
HARDEST = 0.3  # share of pixels in the bootstrapped term, which has weight 1/2


class ClickObjective(Objective[Any]):
    """BCE and soft IoU of the predictions after the first mark and after the last of 1 to 3 clicks;
    predictions in between have no gradient.

    The backbone is frozen: features come from a copy with batch norms folded into convolutions.
    """

    def __init__(self, network: ClickNet) -> None:
        super().__init__(network)
        self.network = network
        self._backbone = prepare_network(
            deepcopy(network.backbone).eval().requires_grad_(False),
            torch.device("cpu"),
            torch.float32,
        )

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        seen, truth = self._seen(batch), batch.masks[:, 0] > 0
        marks = [self._first_mark(mask.numpy(), rng) for mask in truth]
        clicks = int(rng.integers(1, MOST_CLICKS + 1))
        logits = self.network(seen, _planes(marks))
        losses = _losses(logits, truth, "first")
        for number in range(clicks):
            self._click(marks, logits, truth, rng)
            with torch.set_grad_enabled(number == clicks - 1):
                logits = self.network(seen, _planes(marks))
        return {**losses, **_losses(logits, truth, "later")}

    @torch.no_grad()
    def score(self, batch: Batch) -> float:
        """Mean IoU of the predictions for the exact box."""
        seen, truth = self._seen(batch), batch.masks[:, 0] > 0
        marks = [Marks(mask.shape, self.network.config.radius) for mask in truth]
        for mark, mask in zip(marks, truth, strict=True):
            mark.box(box_of(mask.numpy().astype(np.uint8)))
        masks = masks_of(self.network(seen, _planes(marks)), truth.shape[1])
        return float(iou_of_each(masks, truth).mean())

    @torch.no_grad()
    def _seen(self, batch: Batch) -> Seen:
        """Backbone features, computed photo by photo so that the maps fit in the CPU cache."""
        frames = normalised(batch.frames[:, 0], self.network.config)  # type: ignore[arg-type]
        frames = frames.contiguous(memory_format=torch.channels_last)
        maps = [self._backbone(frame[None]) for frame in frames]
        joined = [torch.cat(level) for level in zip(*(m[:3] for m in maps), strict=True)]
        return as_seen(frames, Pyramid(joined[0], joined[1], joined[2], None))

    def _first_mark(self, truth: NDArray[np.bool_], rng: np.random.Generator) -> Marks:
        marks = Marks(truth.shape, self.network.config.radius)
        kind = rng.random()
        if kind < BOXES:
            marks.box(drawn_box(box_of(truth.astype(np.uint8)), truth.shape[0], rng))
        else:
            last = spoilt(truth, rng) if kind < BOXES + SPOILT else np.zeros_like(truth)
            marks.click(last, truth, rng)
        return marks

    def _click(
        self,
        marks: list[Marks],
        logits: torch.Tensor,
        truth: torch.Tensor,
        rng: np.random.Generator,
    ) -> None:
        masks = masks_of(logits.detach(), truth.shape[1])
        for mark, mask, target in zip(marks, masks, truth, strict=True):
            mark.click(mask.numpy(), target.numpy(), rng)


def masks_of(logits: torch.Tensor, size: int) -> torch.Tensor:
    """Masks [B, size, size] bool from logits [B, h, w]."""
    fine = functional.interpolate(logits[:, None], (size, size), mode="bilinear")
    return fine[:, 0] > 0


def _planes(marks: list[Marks]) -> torch.Tensor:
    planes = torch.from_numpy(np.stack([mark.planes for mark in marks]))
    return planes.contiguous(memory_format=torch.channels_last)


def _losses(logits: torch.Tensor, truth: torch.Tensor, when: str) -> dict[str, torch.Tensor]:
    """Losses at the logits' size, with the average-pooled truth as the target."""
    size = (logits.shape[1], logits.shape[2])
    target = functional.adaptive_avg_pool2d(truth[:, None].float(), size)[:, 0]
    bce = binary(logits.float(), target)
    return {
        f"bce_{when}": bce.mean() + 0.5 * hardest(bce, HARDEST),
        f"iou_{when}": soft_iou(logits.float().sigmoid(), target),
    }
