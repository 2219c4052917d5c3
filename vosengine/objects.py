"""Object ids and slots: an id is the caller's for ever, a slot is the row of its state today."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch

from .errors import InputError


class ObjectSlots:
    """Which slot each living object has. Slots are 0, 1, 2... without gaps, in order of arrival."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ever: set[int] = set()  # every id that had a slot in this stream
        self._ids: list[int] = []  # the id in every slot

    @property
    def in_slot_order(self) -> tuple[int, ...]:
        return tuple(self._ids)

    @property
    def ascending(self) -> tuple[int, ...]:
        return tuple(sorted(self._ids))

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, object_id: int) -> bool:
        return object_id in self._ids

    def slot(self, object_id: int) -> int:
        return self._ids.index(object_id)

    def check_room(self, object_ids: Iterable[int]) -> None:
        """Raise InputError if these ids, known or new, would be more than the capacity."""
        together = sorted({*self._ids, *object_ids})
        if len(together) > self.capacity:
            raise InputError(
                f"mask: {len(together)} objects {together} are more than max_objects = "
                f"{self.capacity}; remove some, or make the Segmenter with a larger max_objects"
            )

    def joined_by(self, object_ids: Iterable[int]) -> tuple[int, ...]:
        """The ids in order of slot once these have slots too: new ones last, ascending."""
        return (*self._ids, *sorted(set(object_ids) - set(self._ids)))

    def unused(self, count: int, named: Iterable[int]) -> tuple[int, ...]:
        """Ids for up to `count` discovered objects: the smallest that this stream never had and the
        caller has not `named`, as many as there is room for beside those."""
        together = {*self._ids, *named}
        free = (i for i in range(1, 256) if i not in self.ever | together)
        return tuple(islice(free, max(0, min(count, self.capacity - len(together)))))

    def assign(self, ids_by_slot: Iterable[int]) -> None:
        """Take these ids, one per slot."""
        self._ids = list(ids_by_slot)
        self.ever |= set(self._ids)

    def remove(self, object_id: int) -> int:
        """Free the slot of an id and return it; the object of the last slot moves there."""
        slot = self.slot(object_id)
        last = self._ids.pop()
        if slot < len(self._ids):
            self._ids[slot] = last
        return slot


def named_ids(prompt: torch.Tensor) -> tuple[int, ...]:
    """The object ids that a prompt names, ascending."""
    present = torch.bincount(prompt.flatten(), minlength=256).nonzero().flatten().tolist()
    return tuple(object_id for object_id in present if object_id > 0)


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
    return table[probabilities.argmax(dim=0)]
