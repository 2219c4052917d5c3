"""Page pools: storage for the keys and values of one object in one frame, shared by streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

import torch

from ..errors import CapacityError

FIRST_PAGES = 8  # initial capacity of a pool; it doubles when full
MIB = 1 << 20


class Pages:
    """A pool of pages of one shape, on one device.

    Page numbers are stable. A full pool is reallocated at twice the capacity, within the budget; an
    unused pool may be freed.

    keys     [N, P, Ck]
    values   [N, P, Cv]
    version  number of reallocations; graphs captured for another version are invalid
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
        # Pages freed by finalizers, which may run at any time.
        self._returned: deque[int] = deque()

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return sum(x.shape[1] * x.shape[2] * x.element_size() for x in (self.keys, self.values))

    @property
    def capacity(self) -> int:
        """Number of allocated pages."""
        return len(self.keys)

    @property
    def used(self) -> int:
        """Number of pages in use."""
        return self.capacity - len(self._free) - len(self._returned)

    def take(self, count: int) -> list[int]:
        """Take `count` free pages; returns their numbers.

        Raises  CapacityError, before any change, if the budget is exhausted.
        """
        if count == 0:  # most steps
            return []
        self._settle()
        missing = count - len(self._free)
        if missing > 0:
            self._grow(missing)
        return [heappop(self._free) for _ in range(count)]

    def give(self, pages: Iterable[int]) -> None:
        """Return pages to the pool."""
        self._returned.extend(pages)

    def let_go(self) -> None:
        """Free the pool's memory if no page is in use."""
        self._settle()
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
            "stream or remove objects, or create the engine with a larger memory_budget"
        )

    def _move(self, capacity: int) -> None:
        kept = min(capacity, self.capacity)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(capacity, *old.shape[1:])
            new[:kept] = old[:kept]
            setattr(self, name, new)
        self._free = [page for page in self._free if page < capacity]  # all or none: still a heap
        self.version += 1


class PagePools:
    """An engine's page pools, one per page shape, within one budget.

    budget  maximum bytes of all pools together; None: limited by the device only
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
        """The pool for a page shape, created if necessary.

        positions  P, grid cells per page
        channels   (Ck, Cv)
        """
        key = positions, channels, device, dtype
        if key not in self._pools:
            self._pools[key] = Pages(self, positions, channels, device=device, dtype=dtype)
        return self._pools[key]

    @property
    def used(self) -> int:
        """Number of pages in use, in all pools."""
        return sum(pool.used for pool in self._pools.values())

    @property
    def capacity(self) -> int:
        """Number of allocated pages, in all pools."""
        return sum(pool.capacity for pool in self._pools.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages in use."""
        return sum(pool.used * pool.page_bytes for pool in self._pools.values())

    @property
    def nbytes(self) -> int:
        """Bytes allocated by all pools, free pages included."""
        return sum(pool.capacity * pool.page_bytes for pool in self._pools.values())

    @property
    def version(self) -> int:
        """Total number of reallocations."""
        return sum(pool.version for pool in self._pools.values())

    def room_for(self, pool: Pages) -> int | None:
        """Maximum capacity of a pool within the budget, in pages; None: unlimited.

        Frees the memory of other, unused pools first.
        """
        if self.budget is None:
            return None
        others = [other for other in self._pools.values() if other is not pool]
        for other in others:
            other.let_go()
        taken = sum(other.capacity * other.page_bytes for other in others)
        return max(0, self.budget - taken) // pool.page_bytes
