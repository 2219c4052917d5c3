"""Object ids and slots: an id identifies an object for good, a slot is its current state row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from operator import index
from typing import Any

from ..errors import InputError


class ObjectSlots:
    """Mapping of the living objects' ids to slots: 0, 1, 2... without gaps, in order of arrival."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ever: set[int] = set()  # ids that have had a slot in this stream
        self.reserved: set[int] = set()  # ids (and capacity) kept for the caller
        self._ids: list[int] = []  # object id by slot

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
        """Check that one id or several have a slot; returns them without duplicates.

        Raises  InputError for a value that is not an integer, and for ids without a slot.
        """
        value: Any = object_ids
        try:
            several = value if getattr(value, "ndim", isinstance(value, Iterable)) else (value,)
            ids = tuple(dict.fromkeys(index(object_id) for object_id in several))
        except TypeError:
            raise InputError(f"remove: wanted one object id or several, given {value!r}") from None
        unknown = [object_id for object_id in ids if object_id not in self._ids]
        if unknown:
            alive = ", ".join(map(str, self.ascending)) or "none"
            raise InputError(f"remove: no object {', '.join(map(str, unknown))}; alive: {alive}")
        return ids

    def check_room(self, object_ids: Iterable[int]) -> None:
        """Raise InputError if the living objects and these ids together exceed the capacity."""
        total = sorted({*self._ids, *object_ids})
        if len(total) > self.capacity:
            raise InputError(
                f"mask: {len(total)} objects {total} are more than max_objects = "
                f"{self.capacity}; remove some, or begin with a larger max_objects"
            )

    def joined_by(self, object_ids: Iterable[int]) -> tuple[int, ...]:
        """The ids in slot order after adding these: new ones last, ascending; changes nothing."""
        return (*self._ids, *sorted(set(object_ids) - set(self._ids)))

    def reserve(self, object_ids: Iterable[int]) -> None:
        """Keep ids and capacity for the caller: discovered objects cannot take them.

        Raises  InputError for an id outside 1..255, and if the ids exceed the capacity.
        """
        ids = set(object_ids)
        if not ids <= set(range(1, 256)):
            raise InputError(f"reserve: wanted object ids in 1..255, given {sorted(ids)}")
        self.check_room(self.reserved | ids)
        self.reserved |= ids

    def unused(self, count: int, named: Iterable[int]) -> tuple[int, ...]:
        """Ids for up to `count` discovered objects, as many as the capacity allows.

        The smallest ids that this stream has never used, excluding `named` and reserved ids.
        """
        taken = {*self._ids, *named, *self.reserved}
        free = (i for i in range(1, 256) if i not in self.ever | taken)
        return tuple(islice(free, max(0, min(count, self.capacity - len(taken)))))

    def discovered(
        self, pixels: Sequence[Sequence[int]], named: Iterable[int]
    ) -> list[tuple[int, int]]:
        """(id, row of the scores) of the discovered objects that are kept.

        Dropped are objects of which more than half is covered by the prompt (the caller has named
        them), and those beyond the capacity; they may be discovered again in the next frame.

        pixels  (covered by the prompt, total) for each row after those of the living objects
        named   ids in the prompts of this frame and of later ones
        """
        rows = [
            row for row, (covered, total) in enumerate(pixels, len(self)) if 2 * covered <= total
        ]
        return list(zip(self.unused(len(rows), named), rows, strict=False))

    def assign(self, ids_by_slot: Iterable[int]) -> None:
        """Set the object id of every slot."""
        self._ids = list(ids_by_slot)
        self.ever |= set(self._ids)

    def remove(self, object_id: int) -> int:
        """Free an object's slot and return it; the object of the last slot moves into it."""
        slot = self.slot(object_id)
        last = self._ids.pop()
        if slot < len(self._ids):
            self._ids[slot] = last
        return slot
