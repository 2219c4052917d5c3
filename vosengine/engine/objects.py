"""Object ids and slots: an id is the caller's for ever, a slot is the row of its state today."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from operator import index
from typing import Any

from ..errors import InputError


class ObjectSlots:
    """Which slot each living object has. Slots are 0, 1, 2... without gaps, in order of arrival."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ever: set[int] = set()  # every id that had a slot in this stream
        self.reserved: set[int] = set()  # kept for the caller, with room for them
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

    def living(self, object_ids: int | Iterable[int]) -> tuple[int, ...]:
        """One id or several, each of which has a slot, as a tuple without repetitions.

        Raises  InputError for what is no id, and naming those that have no slot.
        """
        given: Any = object_ids
        try:
            several = given if getattr(given, "ndim", isinstance(given, Iterable)) else (given,)
            ids = tuple(dict.fromkeys(index(each) for each in several))
        except TypeError:
            raise InputError(f"remove: wanted one object id or several, given {given!r}") from None
        unknown = [each for each in ids if each not in self._ids]
        if unknown:
            alive = ", ".join(map(str, self.ascending)) or "none"
            raise InputError(f"remove: no object {', '.join(map(str, unknown))}; alive: {alive}")
        return ids

    def check_room(self, object_ids: Iterable[int]) -> None:
        """Raise InputError if these ids, known or new, would be more than the capacity."""
        together = sorted({*self._ids, *object_ids})
        if len(together) > self.capacity:
            raise InputError(
                f"mask: {len(together)} objects {together} are more than max_objects = "
                f"{self.capacity}; remove some, or begin with a larger max_objects"
            )

    def joined_by(self, object_ids: Iterable[int]) -> tuple[int, ...]:
        """The ids in order of slot once these have slots too: new ones last, ascending."""
        return (*self._ids, *sorted(set(object_ids) - set(self._ids)))

    def reserve(self, object_ids: Iterable[int]) -> None:
        """Keep these ids for the caller, and room for them: no object that is discovered gets it.

        Raises  InputError for what is no id, and for more of them than there is room for.
        """
        ids = set(object_ids)
        if not ids <= set(range(1, 256)):
            raise InputError(f"reserve: wanted object ids in 1..255, given {sorted(ids)}")
        self.check_room(self.reserved | ids)
        self.reserved |= ids

    def unused(self, count: int, named: Iterable[int]) -> tuple[int, ...]:
        """Ids for up to `count` discovered objects: the smallest that this stream never had and the
        caller has neither `named` nor reserved, as many as there is room for beside those."""
        together = {*self._ids, *named, *self.reserved}
        free = (i for i in range(1, 256) if i not in self.ever | together)
        return tuple(islice(free, max(0, min(count, self.capacity - len(together)))))

    def discovered(
        self, pixels: Sequence[Sequence[int]], named: Iterable[int]
    ) -> list[tuple[int, int]]:
        """(id, row of the scores) of the objects that a model found by itself and that are kept:
        not those of which most lies under the prompt, which are what the caller has named, nor
        those for which there is no room or no id; they may be discovered again in the next frame.

        pixels  per row beyond the objects alive, how many lie under the prompt, and of how many
        named   by the prompts of this frame and of later ones
        """
        rows = [row for row, (under, own) in enumerate(pixels, len(self)) if 2 * under <= own]
        return list(zip(self.unused(len(rows), named), rows, strict=False))

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
