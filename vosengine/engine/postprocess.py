"""Post-processing: from a method's scores to the Result and the masks for the memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from ..ambient import own_settings
from ..frames import pad, resize_labels
from ..kernels import finish_masks
from ..types import Geometry, Masks, Prompt, Result, Scores, Size
from .objects import ObjectSlots


class ObjectRows(NamedTuple):
    """Object ids of the score rows in each order, and index tables on the device.

    before    predicted ids, ascending: objects alive that the prompt does not name
    ids       `before` and the prompt's ids, ascending
    by_slot   `ids` in slot order
    prompted  slots of the prompt's ids
    table     uint8 [O], `before`
    rows      int64 [O], score rows of `before`; None: all, in order
    order     int64 [1 + O'], permutation from id order to slot order, background first; None:
              identity
    """

    before: tuple[int, ...]
    ids: tuple[int, ...]
    by_slot: tuple[int, ...]
    prompted: tuple[int, ...]
    table: torch.Tensor
    rows: torch.Tensor | None
    order: torch.Tensor | None

    @classmethod
    def of(
        cls,
        alive: tuple[int, ...],
        named: tuple[int, ...],
        by_slot: tuple[int, ...],
        device: torch.device,
        *,
        indexed: bool = False,
    ) -> ObjectRows:
        """Build the tables.

        alive    ids of the score rows
        named    ids of the prompt
        by_slot  ids of both in slot order
        indexed  always make `rows` and `order` tensors, as captured graphs need
        """

        def index(rows: list[int]) -> torch.Tensor:
            return torch.tensor(rows, dtype=torch.int64, device=device)

        ids = tuple(sorted({*alive, *named}))
        # The scores of an object that the prompt corrects are dropped before the background is
        # computed: where they were confidently wrong, the background depends on the others only.
        before = tuple(sorted(set(alive) - set(named)))
        identity = before == alive and not indexed
        rows = None if identity else index([alive.index(i) for i in before])
        identity = by_slot == ids and not indexed
        order = None if identity else index([0, *(1 + ids.index(i) for i in by_slot)])
        prompted = tuple(slot for slot, object_id in enumerate(by_slot) if object_id in named)
        table = torch.tensor(before, dtype=torch.uint8, device=device)
        return cls(before, ids, by_slot, prompted, table, rows, order)


@dataclass(frozen=True)
class MaskOutput:
    """The masks of one frame, computable at any size from logits and prompt.

    logits  [O, h, w] in ascending order of object id
    region  (top, left, height, width) of the frame on the logits' grid, in cells
    rows    object ids of the rows
    prompt  uint8 [H, W] object ids, merged over the prediction, or None
    """

    logits: torch.Tensor
    region: tuple[float, float, float, float]
    rows: ObjectRows
    prompt: torch.Tensor | None

    def labels(self, size: Size) -> torch.Tensor:
        """Object ids, uint8 [H, W], at a size."""
        if self.prompt is not None:
            return labels_of(self.probabilities(size), self.rows.ids)
        return self._finish(size, False)[0]

    def probabilities(self, size: Size) -> torch.Tensor:
        """float32 [1 + O, H, W]: background, then the objects in ascending order of id."""
        predicted: torch.Tensor = self._finish(size, True)[1]
        if self.prompt is None:
            return predicted
        prompt = resize_labels(self.prompt, size)
        return merge_prompt(predicted, self.rows.before, prompt, self.rows.ids)

    def both(self, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and probabilities in one pass."""
        if self.prompt is None:
            return self._finish(size, True)
        merged = self.probabilities(size)
        return labels_of(merged, self.rows.ids), merged

    def result(
        self, labels: torch.Tensor, frame_index: int, geometry: Geometry
    ) -> Result[torch.Tensor]:
        """The Result with these labels; its probabilities are computed on access."""
        probabilities = own_settings()(partial(self.probabilities, geometry.frame))
        return Result(labels, self.rows.ids, frame_index, probabilities)

    def copied(self, rows: ObjectRows) -> MaskOutput:
        """A copy with cloned tensors, and with `rows` in place of its own."""
        rows = rows._replace(table=rows.table.clone())
        return replace(self, logits=self.logits.clone(), rows=rows)

    def _finish(self, size: Size, probabilities: bool) -> tuple[torch.Tensor, torch.Tensor]:
        labels, planes = finish_masks(
            self.logits,
            self.rows.table,
            size=size,
            region=self.region,
            probabilities=probabilities,
        )
        return labels, planes


def finish(
    scores: Scores | None,
    prompt: Prompt[torch.Tensor] | None,
    slots: ObjectSlots,
    geometry: Geometry,
    frame_index: int,
    device: torch.device,
    reserved: tuple[int, ...] = (),
) -> tuple[Result[torch.Tensor], Masks, tuple[int, ...]]:
    """The Result for a frame, the masks for the memory, and the ids in slot order after it.

    scores       rows in slot order, then the discovered objects; None if there are no objects
    prompt       of this frame, on the device, or None
    slots        the living objects; not changed
    frame_index  index of the frame, from 0
    device       the engine's device
    reserved     ids in prompts of later frames, not available to discovered objects
    """
    named, labels = ((), None) if prompt is None else (prompt.ids, prompt.labels)
    scores, discovered = _discovered(scores, labels, (*named, *reserved), slots, geometry)
    alive = (*slots.in_slot_order, *discovered) if scores is not None else ()
    rows = ObjectRows.of(alive, named, (*slots.joined_by(named), *discovered), device)
    if scores is None:
        scores = Scores(torch.empty(0, 1, 1, device=device), 1)
    output, labels, masks = compose(scores, rows, labels, geometry)
    return output.result(labels, frame_index, geometry), masks, rows.by_slot


def compose(
    scores: Scores, rows: ObjectRows, prompt: torch.Tensor | None, geometry: Geometry
) -> tuple[MaskOutput, torch.Tensor, Masks]:
    """MaskOutput, labels [H, W] uint8 at frame size, and the masks for the memory.

    Uses tensors and index tables only (no host decisions), so that a graph can capture it.
    """
    logits = scores.logits if rows.rows is None else scores.logits[rows.rows]
    output = MaskOutput(logits, geometry.region(scores.stride), rows, prompt)
    labels, network = output.both(geometry.resized)
    if geometry.resized != geometry.frame:
        labels = output.labels(geometry.frame)
    if rows.order is not None:
        network = network[rows.order]
    return output, labels, Masks(pad(network, geometry), rows.prompted, scores.aux)


def _discovered(
    scores: Scores | None,
    prompt: torch.Tensor | None,
    named: tuple[int, ...],
    slots: ObjectSlots,
    geometry: Geometry,
) -> tuple[Scores | None, tuple[int, ...]]:
    """The scores of the living and the kept discovered objects, and the latter's new ids."""
    known = len(slots)
    if scores is None or len(scores.logits) == known:
        return scores, ()
    pixels = [(0, 0)] * (len(scores.logits) - known)
    if prompt is not None:
        prompted = pad(resize_labels(prompt, geometry.resized), geometry)
        prompted = resize_labels(prompted, geometry.cells(scores.stride)) > 0
        masks = scores.logits[known:] > 0
        counts = (planes.sum(dim=(1, 2)) for planes in (masks & prompted, masks))
        pixels = torch.stack(tuple(counts), dim=1).tolist()
    fresh = slots.discovered(pixels, named)
    kept = [*range(known), *(row for _, row in fresh)]
    if len(kept) < len(scores.logits):
        scores = replace(scores, logits=scores.logits[kept])
    return scores, tuple(object_id for object_id, _ in fresh)


def make_prompt(labels: torch.Tensor, device: torch.device) -> Prompt[torch.Tensor]:
    """The Prompt on `device` for checked labels, uint8 [H, W]; synchronises with their device."""
    present = torch.bincount(labels.flatten(), minlength=256).nonzero().flatten().tolist()
    return Prompt(labels.to(device), tuple(i for i in present if i > 0))


def merge_prompt(
    probabilities: torch.Tensor,
    before: tuple[int, ...],
    prompt: torch.Tensor,
    ids: tuple[int, ...],
) -> torch.Tensor:
    """Merge the caller's mask over predicted probabilities.

    On labelled pixels the labelled object has probability 1 and all others 0. Elsewhere the
    prompt's objects have 0 and the others are as predicted. (AFB-URR's evaluation forces the other
    logits to -1000 under a given mask.)

    probabilities  [1 + O, H, W], background and the ids `before`, ascending, not in the prompt
    prompt         [H, W] uint8
    ids            `before` and the prompt's ids, ascending

    Returns  [1 + O', H, W], background and `ids`
    """
    merged = probabilities.new_zeros(1 + len(ids), *probabilities.shape[1:])
    merged[[0, *(1 + ids.index(object_id) for object_id in before)]] = probabilities
    merged.masked_fill_(prompt > 0, 0)
    for object_id in set(ids) - set(before):
        merged[1 + ids.index(object_id)].masked_fill_(prompt == object_id, 1)
    return merged


def labels_of(probabilities: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    """Object ids, uint8 [H, W], by argmax over the rows; the first row wins ties."""
    table = torch.tensor((0, *ids), dtype=torch.uint8, device=probabilities.device)
    return table[probabilities.max(dim=0).indices]
