"""Pages: what one object looked like in one remembered frame, from pools that streams share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

import torch

from ..errors import CapacityError

FIRST_PAGES = 8  # that a pool makes room for at once; then it doubles
MIB = 1 << 20


class Pages:
    """A pool of pages of one shape, on one device. No page is ever moved within it; when none is
    free it is copied to a place twice as large, up to the budget, and when all are free it is
    let go.

    keys     [N, P, Ck]
    values   [N, P, Cv]
    version  how often keys and values have changed place: what was captured for other ones is void
    """

    def __init__(
        self,
        pools: PagePools,
        positions: int,
        channels: tuple[int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._pools = pools
        self.keys = torch.zeros(0, positions, channels[0], device=device, dtype=dtype)
        self.values = torch.zeros(0, positions, channels[1], device=device, dtype=dtype)
        self.version = 0
        self._free: list[int] = []  # a heap
        # Where memories are collected as garbage, pages come back at any moment: they wait here.
        self._returned: deque[int] = deque()

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return sum(x.shape[1] * x.shape[2] * x.element_size() for x in (self.keys, self.values))

    @property
    def capacity(self) -> int:
        """Pages there is room for."""
        return len(self.keys)

    @property
    def used(self) -> int:
        """Pages that hold something."""
        self._settle()
        return self.capacity - len(self._free)

    def take(self, count: int) -> list[int]:
        """The numbers of so many free pages. Raises CapacityError, before anything has changed,
        where the budget has no room for them."""
        if count == 0:  # as in most steps
            return []
        self._settle()
        missing = count - len(self._free)
        if missing > 0:
            self._grow(missing)
        return [heappop(self._free) for _ in range(count)]

    def give(self, pages: Iterable[int]) -> None:
        """Free pages that were taken."""
        self._returned.extend(pages)

    def let_go(self) -> None:
        """Free the memory, where no page is used."""
        if self.capacity and self.used == 0:
            self._move(0)

    def _settle(self) -> None:
        while self._returned:
            heappush(self._free, self._returned.popleft())

    def _grow(self, missing: int) -> None:
        least = self.capacity + missing
        wanted = max(least, 2 * self.capacity, FIRST_PAGES)
        room = self._pools.room_for(self)
        if room is not None:
            if least > room:
                raise CapacityError(self._refusal(missing + len(self._free), room))
            wanted = min(wanted, room)
        for page in range(self.capacity, wanted):
            heappush(self._free, page)
        self._move(wanted)

    def _refusal(self, wanted: int, room: int) -> str:
        budget, size = self._pools.budget or 0, self.page_bytes
        return (
            f"memory: wanted {wanted} pages of {size / MIB:.3g} MiB more than the {self.used} in "
            f"use, and the budget of {budget / MIB:.4g} MiB has room for {room} in all; close a "
            "stream or remove objects, or make the engine with a larger memory_budget"
        )

    def _move(self, capacity: int) -> None:
        kept = min(capacity, self.capacity)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(capacity, *old.shape[1:])
            new[:kept] = old[:kept]
            setattr(self, name, new)
        self._free = [page for page in self._free if page < capacity]  # a heap still: none or all
        self.version += 1


class PagePools:
    """The pools of one engine, one for each shape of page, within one budget.

    budget  bytes that all pools together may take; None: as much as the device has
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self._pools: dict[object, Pages] = {}

    def of(
        self,
        positions: int,
        channels: tuple[int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Pages:
        """The pool of pages of that shape, which is made where there is none."""
        key = positions, channels, device, dtype
        if key not in self._pools:
            self._pools[key] = Pages(self, positions, channels, device=device, dtype=dtype)
        return self._pools[key]

    @property
    def used(self) -> int:
        """Pages that hold something, in all pools."""
        return sum(pool.used for pool in self._pools.values())

    @property
    def capacity(self) -> int:
        """Pages there is room for, in all pools."""
        return sum(pool.capacity for pool in self._pools.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of those pages."""
        return sum(pool.used * pool.page_bytes for pool in self._pools.values())

    @property
    def nbytes(self) -> int:
        """Bytes that the pools take, with the pages that are free."""
        return sum(pool.capacity * pool.page_bytes for pool in self._pools.values())

    @property
    def version(self) -> int:
        """How often any pool has changed place."""
        return sum(pool.version for pool in self._pools.values())

    def room_for(self, pool: Pages) -> int | None:
        """Pages that this pool may have at most, once others that hold nothing are let go; None:
        any number."""
        if self.budget is None:
            return None
        others = [each for each in self._pools.values() if each is not pool]
        for each in others:
            each.let_go()
        taken = sum(each.capacity * each.page_bytes for each in others)
        return max(0, self.budget - taken) // pool.page_bytes
