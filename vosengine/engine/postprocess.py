"""From a method's scores to the caller's answer, and to the masks that its memory is to see."""

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
    """Rows of the scores by object: ids in each order, and index tables on the device, made once.

    before    ids with scores that count, ascending: those alive that no prompt names
    ids       those together with the prompt's, ascending
    by_slot   the same in order of slot
    prompted  the slots whose ids the prompt names
    table     uint8 [O], `before`
    rows      which rows of the scores are those of `before`; None: all, in order
    order     which rows of [1 + O'] by id are those by slot; None: all, in order
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
        """alive: the ids of the scores' rows; named: of the prompt; by_slot: of both, by slot;
        indexed: `rows` and `order` are tables for any ids."""

        def index(rows: list[int]) -> torch.Tensor:
            return torch.tensor(rows, dtype=torch.int64, device=device)

        ids = tuple(sorted({*alive, *named}))
        # A corrected object's scores count nowhere, not even against the background: where it was
        # sure and wrong, the background is as likely as the other objects' scores say.
        before = tuple(sorted(set(alive) - set(named)))
        as_they_are = before == alive and not indexed
        rows = None if as_they_are else index([alive.index(each) for each in before])
        as_they_are = by_slot == ids and not indexed
        order = None if as_they_are else index([0, *(1 + ids.index(each) for each in by_slot)])
        prompted = tuple(slot for slot, each in enumerate(by_slot) if each in named)
        table = torch.tensor(before, dtype=torch.uint8, device=device)
        return cls(before, ids, by_slot, prompted, table, rows, order)


@dataclass(frozen=True)
class MaskOutput:
    """The masks of one frame, to be had at any size: small logits, and the prompt laid over them.

    logits  [O, h, w] in ascending order of object id
    region  of the grid that the frame covers, in cells
    rows    the objects of its rows
    prompt  uint8 [H, W] object ids, or None
    """

    logits: torch.Tensor
    region: tuple[float, float, float, float]
    rows: ObjectRows
    prompt: torch.Tensor | None

    def labels(self, size: Size) -> torch.Tensor:
        """uint8 [H, W] object ids."""
        if self.prompt is not None:
            return labels_of(self.probabilities(size), self.rows.ids)
        return self._finish(size, False)[0]

    def probabilities(self, size: Size) -> torch.Tensor:
        """float32 [1 + O, H, W]: background, then the objects in ascending order of id."""
        found: torch.Tensor = self._finish(size, True)[1]
        if self.prompt is None:
            return found
        prompt = resize_labels(self.prompt, size)
        return merge_prompt(found, self.rows.before, prompt, self.rows.ids)

    def both(self, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and probabilities in one pass."""
        if self.prompt is None:
            labels, found = self._finish(size, True)
            return labels, found
        merged = self.probabilities(size)
        return labels_of(merged, self.rows.ids), merged

    def result(
        self, labels: torch.Tensor, frame_index: int, geometry: Geometry
    ) -> Result[torch.Tensor]:
        """The caller's answer, whose probabilities are made when they are asked for."""
        probabilities = own_settings()(partial(self.probabilities, geometry.frame))
        return Result(labels, self.rows.ids, frame_index, probabilities)

    def copied(self, rows: ObjectRows) -> MaskOutput:
        """The same with tensors of its own, and these rows."""
        rows = rows._replace(table=rows.table.clone())
        return replace(self, logits=self.logits.clone(), rows=rows)

    def _finish(self, size: Size, probabilities: bool) -> tuple[torch.Tensor, torch.Tensor]:
        labels, found = finish_masks(
            self.logits,
            self.rows.table,
            size=size,
            region=self.region,
            probabilities=probabilities,
        )
        return labels, found


def finish(
    scores: Scores | None,
    prompt: Prompt[torch.Tensor] | None,
    slots: ObjectSlots,
    geometry: Geometry,
    frame_index: int,
    device: torch.device,
    reserved: tuple[int, ...] = (),
) -> tuple[Result[torch.Tensor], Masks, tuple[int, ...]]:
    """The answer for a frame, the masks for the memory, and the ids in order of slot after it.

    scores    logits in order of slot, then of the discovered objects; None where there is no object
    prompt    of this frame, on the device, or None
    device    the engine's, where the answer is to be
    reserved  ids that prompts of later frames name, not to be given to discovered objects
    """
    named, shown = ((), None) if prompt is None else (prompt.ids, prompt.labels)
    scores, found = _discovered(scores, shown, (*named, *reserved), slots, geometry)
    alive = (*slots.in_slot_order, *found) if scores is not None else ()
    rows = ObjectRows.of(alive, named, (*slots.joined_by(named), *found), device)
    if scores is None:
        scores = Scores(torch.empty(0, 1, 1, device=device), 1)
    output, labels, masks = compose(scores, rows, shown, geometry)
    return output.result(labels, frame_index, geometry), masks, rows.by_slot


def compose(
    scores: Scores, rows: ObjectRows, prompt: torch.Tensor | None, geometry: Geometry
) -> tuple[MaskOutput, torch.Tensor, Masks]:
    """The masks at any size, the labels [H, W] uint8 at the frame's, and the memory's masks; of
    tensors and index tables alone, nothing is decided here."""
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
    """The scores with those discovered objects that are kept, and their ids."""
    known = len(slots)
    if scores is None or len(scores.logits) == known:
        return scores, ()
    pixels = [(0, 0)] * (len(scores.logits) - known)
    if prompt is not None:
        given = pad(resize_labels(prompt, geometry.resized), geometry)
        given = resize_labels(given, geometry.cells(scores.stride)) > 0
        found = scores.logits[known:] > 0
        counts = (each.sum(dim=(1, 2)) for each in (found & given, found))
        pixels = torch.stack(tuple(counts), dim=1).tolist()
    fresh = slots.discovered(pixels, named)
    kept = [*range(known), *(row for _, row in fresh)]
    if len(kept) < len(scores.logits):
        scores = replace(scores, logits=scores.logits[kept])
    return scores, tuple(object_id for object_id, _ in fresh)


def named(labels: torch.Tensor, device: torch.device) -> Prompt[torch.Tensor]:
    """A mask that was checked, uint8 [H, W], as a prompt on a device; its ids are found out, which
    waits, where it lies."""
    present = torch.bincount(labels.flatten(), minlength=256).nonzero().flatten().tolist()
    return Prompt(labels.to(device), tuple(each for each in present if each > 0))


def merge_prompt(
    probabilities: torch.Tensor,
    before: tuple[int, ...],
    prompt: torch.Tensor,
    ids: tuple[int, ...],
) -> torch.Tensor:
    """Predicted probabilities with the caller's mask put over them.

    Where the prompt names an object, that object has probability 1 and all others 0; elsewhere the
    objects that it names have 0, and the others what was predicted. (AFB-URR's evaluation forces
    the other logits to -1000 under a given mask.)

    probabilities  [1 + O, H, W], rows of the ids `before`, ascending, none of them in the prompt
    prompt         [H, W] uint8
    returns        [1 + O', H, W], rows of `ids`: those before and the prompt's, ascending
    """
    merged = probabilities.new_zeros(1 + len(ids), *probabilities.shape[1:])
    merged[[0, *(1 + ids.index(object_id) for object_id in before)]] = probabilities
    merged.masked_fill_(prompt > 0, 0)
    for object_id in set(ids) - set(before):
        merged[1 + ids.index(object_id)].masked_fill_(prompt == object_id, 1)
    return merged


def labels_of(probabilities: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    """uint8 [H, W]: the id of the most probable row, the first where several are equal."""
    table = torch.tensor((0, *ids), dtype=torch.uint8, device=probabilities.device)
    return table[probabilities.max(dim=0).indices]
