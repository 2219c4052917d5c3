"""From a method's scores to the caller's answer, and to the masks that its memory is to see."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    reserved: tuple[int, ...] = (),
) -> tuple[Result, Masks, tuple[int, ...]]:
    """The answer for a frame, the masks for the memory, and the ids in order of slot after it.

    scores    logits in order of slot, then of the discovered objects; None where there is no object
    prompt    uint8 [H, W] object ids at frame size, or None
    device    the engine's, where the answer is to be
    reserved  ids that prompts of later frames name, not to be given to discovered objects
    """
    named = () if prompt is None else named_ids(prompt)
    scores, found = _discovered(scores, prompt, (*named, *reserved), slots, geometry)
    alive = (*slots.in_slot_order, *found) if scores is not None else ()
    ids = tuple(sorted({*alive, *named}))
    if scores is None:
        canvas = Canvas(torch.empty(0, 1, 1, device=device), (0, 0, 1, 1), (), ids, prompt)
    else:
        # A corrected object's scores count nowhere, not even against the background: where it was
        # sure and wrong, the background is as likely as the other objects' scores say.
        before = tuple(sorted(set(alive) - set(named)))
        logits = scores.logits
        if before != alive:
            logits = logits[[alive.index(object_id) for object_id in before]]
        canvas = Canvas(logits, geometry.region(scores.stride), before, ids, prompt)
    labels, network = canvas.both(geometry.resized)
    if geometry.resized != geometry.frame:
        labels = canvas.labels(geometry.frame)
    by_slot = (*slots.joined_by(named), *found)
    if by_slot != ids:
        network = network[[0, *(1 + ids.index(object_id) for object_id in by_slot)]]
    prompted = tuple(slot for slot, object_id in enumerate(by_slot) if object_id in named)
    masks = Masks(pad(network, geometry), prompted, scores and scores.evidence)
    result = Result(labels, ids, frame_index, partial(canvas.probabilities, geometry.frame))
    return result, masks, by_slot


def _discovered(
    scores: Scores | None,
    prompt: torch.Tensor | None,
    named: tuple[int, ...],
    slots: ObjectSlots,
    geometry: Geometry,
) -> tuple[Scores | None, tuple[int, ...]]:
    """The scores with those discovered objects that are kept, and their ids.

    One that lies under the prompt is what the caller has named, and one for which there is no room
    or no id is left out; it may be discovered again in the next frame.
    """
    known = len(slots)
    if scores is None or len(scores.logits) == known:
        return scores, ()
    rows = list(range(known, len(scores.logits)))
    if prompt is not None:
        given = pad(resize_labels(prompt, geometry.resized), geometry)
        given = resize_labels(given, geometry.cells(scores.stride)) > 0
        found = scores.logits[known:] > 0
        under = 2 * (found & given).sum(dim=(1, 2)) > found.sum(dim=(1, 2))
        rows = [row for row, is_under in zip(rows, under.tolist(), strict=True) if not is_under]
    ids = slots.unused(len(rows), named)
    kept = [*range(known), *rows[: len(ids)]]
    if len(kept) == len(scores.logits):
        return scores, ids
    return replace(scores, logits=scores.logits[kept]), ids
