"""From a method's scores to the caller's answer, and to the masks that its memory is to see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from .frames import pad, resize_labels
from .kernels import finish_masks
from .objects import ObjectSlots, labels_of, merge_prompt, named_ids
from .types import Geometry, Masks, Result, Scores, Size


@dataclass(frozen=True)
class Canvas:
    """The masks of one frame, to be had at any size: small logits, and the prompt laid over them.

    logits  [O, h, w] in ascending order of object id
    region  of the grid that the frame covers, in cells
    before  the ids of the logits' rows, none of them the prompt's; `ids` those together with the
            prompt's, both ascending
    prompt  uint8 [H, W] object ids, or None
    """

    logits: torch.Tensor
    region: tuple[float, float, float, float]
    before: tuple[int, ...]
    ids: tuple[int, ...]
    prompt: torch.Tensor | None

    def labels(self, size: Size) -> torch.Tensor:
        """uint8 [H, W] object ids."""
        if self.prompt is not None:
            return labels_of(self.probabilities(size), self.ids)
        return self._finish(size, False)[0]

    def probabilities(self, size: Size) -> torch.Tensor:
        """float32 [1 + O, H, W]: background, then the objects in ascending order of id."""
        found: torch.Tensor = self._finish(size, True)[1]
        if self.prompt is None:
            return found
        return merge_prompt(found, self.before, resize_labels(self.prompt, size), self.ids)

    def both(self, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and probabilities in one pass."""
        if self.prompt is None:
            labels, found = self._finish(size, True)
            return labels, found
        merged = self.probabilities(size)
        return labels_of(merged, self.ids), merged

    def _finish(self, size: Size, probabilities: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor(self.before, dtype=torch.uint8, device=self.logits.device)
        labels, found = finish_masks(
            self.logits, ids, size=size, region=self.region, probabilities=probabilities
        )
        return labels, found


def finish(
    scores: Scores | None,
    prompt: torch.Tensor | None,
    slots: ObjectSlots,
    geometry: Geometry,
    frame_index: int,
    device: torch.device,
) -> tuple[Result, Masks, tuple[int, ...]]:
    """The answer for a frame, the masks for the memory, and the ids in order of slot after it.

    scores  logits in order of slot; None where there is no object yet
    prompt  uint8 [H, W] object ids at frame size, or None
    device  the engine's, where the answer is to be
    """
    named = () if prompt is None else named_ids(prompt)
    alive = slots.ascending if scores is not None else ()
    ids = tuple(sorted({*alive, *named}))
    if scores is None:
        canvas = Canvas(torch.empty(0, 1, 1, device=device), (0, 0, 1, 1), (), ids, prompt)
    else:
        # A corrected object's scores count nowhere, not even against the background: where it was
        # sure and wrong, the background is as likely as the other objects' scores say.
        before = tuple(object_id for object_id in alive if object_id not in named)
        logits = scores.logits
        if before != slots.in_slot_order:
            logits = logits[[slots.slot(object_id) for object_id in before]]
        canvas = Canvas(logits, geometry.region(scores.stride), before, ids, prompt)
    labels, network = canvas.both(geometry.resized)
    if geometry.resized != geometry.frame:
        labels = canvas.labels(geometry.frame)
    by_slot = slots.joined_by(named)
    if by_slot != ids:
        network = network[[0, *(1 + ids.index(object_id) for object_id in by_slot)]]
    prompted = tuple(slot for slot, object_id in enumerate(by_slot) if object_id in named)
    masks = Masks(pad(network, geometry), prompted)
    result = Result(labels, ids, frame_index, partial(canvas.probabilities, geometry.frame))
    return result, masks, by_slot
