"""MemoryBank: whole frames of every object, in a ring of pages."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .pages import Pages


class Stored(NamedTuple):
    """Memory arguments of `read_memory`.

    keys    [O, N, Ck], or with `pages` a pool's [pages, P, Ck]
    values  [O, N, Cv], or with `pages` a pool's [pages, P, Cv]
    length  [O] int32 valid positions; None: all N
    pages   [O, T] int32 page table, or None
    """

    keys: torch.Tensor
    values: torch.Tensor
    length: torch.Tensor | None
    pages: torch.Tensor | None = None


class MemoryBank:
    """Ring of frame slots per group; slot 0 is pinned to the group's first annotated frame.

    A slot is assigned a page when it is first written.

    table   [G, T] int32    page of every slot
    length  [G] int32       valid positions, a multiple of P; on the device, so that a captured
                            graph stays valid while the memory grows
    cursor  [G] int64       slot of the next write; advanced by `keep` only, so that "previous frame
                            only" and "every fifth frame" need no separate storage
    """

    def __init__(self, groups: int, frames: int, pages: Pages) -> None:
        device = pages.keys.device
        self.pages = pages
        self.table = torch.zeros(groups, frames, device=device, dtype=torch.int32)
        self.length = torch.zeros(groups, device=device, dtype=torch.int32)
        self.cursor = torch.zeros(groups, device=device, dtype=torch.int64)
        self._rows = torch.arange(groups, device=device)
        self._held: list[list[int]] = [[] for _ in range(groups)]  # pages by group, as in `table`
        # Host-side upper bound of `cursor`: writes to groups that are not `shown` do not advance
        # the cursor, and `shown` is known on the device only.
        self._latest = [0] * groups
        weakref.finalize(self, _give_back, pages, self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that the bank can hold."""
        return self.table.numel() * self.pages.page_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the pages that the bank holds."""
        return sum(map(len, self._held)) * self.pages.page_bytes

    def make_room(self, count: int) -> None:
        """Allocate the pages for the next frame of the first `count` groups.

        Raises  CapacityError, before any change.
        """
        short = [g for g in range(count) if len(self._held[g]) <= self._latest[g]]
        for group, page in zip(short, self.pages.take(len(short)), strict=True):
            self.table[group, len(self._held[group])] = page
            self._held[group].append(page)

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: Sequence[bool],
        shown: torch.Tensor | None = None,
    ) -> None:
        """Write one frame of the first O groups; does not synchronise with the device.

        key    [O, P, Ck]
        value  [O, P, Cv]
        keep   [O] `keep` advances the write cursor; otherwise the next write overwrites this slot
        shown  [O] bool on the device; False leaves the group unchanged; None: all True

        Raises  CapacityError, before any change.
        """
        count = key.shape[0]
        self.make_room(count)
        frames, positions = self.table.shape[1], self.pages.keys.shape[1]
        rows, cursor = self._rows[:count], self.cursor[:count].clone()  # autograd may save it
        page = self.table[rows, cursor].long()
        written = ((cursor + 1) * positions).to(torch.int32)
        advances = _on_device(keep, key.device)
        keys, values = self.pages.keys, self.pages.values
        if shown is not None:
            mask = shown[:, None, None]
            key = torch.where(mask, key, keys[page])
            value = torch.where(mask, value, values[page])
            written = written.masked_fill(~shown, 0)
            advances = advances & shown
        keys[page] = key.to(keys.dtype)  # half precision under autocast in training
        values[page] = value.to(values.dtype)
        self.length[:count] = torch.maximum(self.length[:count], written)
        following = torch.where(cursor + 1 < frames, cursor + 1, 1)  # slot 0 is pinned
        self.cursor[:count] = torch.where(advances, following, cursor)
        for group, kept in enumerate(keep):
            self._latest[group] = min(self._latest[group] + kept, frames - 1)

    def read(self, count: int) -> Stored:
        """The first `count` groups; positions at or past `length` are undefined."""
        return Stored(self.pages.keys, self.pages.values, self.length[:count], self.table[:count])

    def forget(self, group: int, count: int) -> None:
        """Remove a group and free its pages; the last of the `count` groups takes its place."""
        last = count - 1
        self.pages.give(self._held[group])
        if group != last:
            for tensor in (self.table, self.length, self.cursor):
                tensor[group].copy_(tensor[last])
        self._held[group], self._latest[group] = self._held[last], self._latest[last]
        self._held[last], self._latest[last] = [], 0
        self.length[last] = 0
        self.cursor[last] = 0

    def release(self) -> None:
        """Clear all groups and free their pages."""
        _give_back(self.pages, self._held)
        self._latest = [0] * len(self._held)
        self.length.zero_()
        self.cursor.zero_()

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """The contents of the first `count` groups, by name, for saving.

        Only slots used by at least one group; unused slots of the others are 0.
        """
        positions = self.pages.keys.shape[1]
        used = int(self.length[:count].max()) // positions if count else 0
        frames = torch.arange(used, device=self.length.device) * positions
        unused = (frames >= self.length[:count, None])[..., None, None]
        page = self.table[:count, :used].long()
        return {
            "keys": self.pages.keys[page].masked_fill(unused, 0),
            "values": self.pages.values[page].masked_fill(unused, 0),
            "length": self.length[:count],
            "cursor": self.cursor[:count],
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the contents that `tensors` returned.

        Raises  CapacityError; the bank is empty then.
        """
        self.release()
        positions, count = self.pages.keys.shape[1], len(tensors["length"])
        used = [length // positions for length in tensors["length"].tolist()]
        taken = iter(self.pages.take(sum(used)))
        for group, frames in enumerate(used):
            numbers = self._held[group] = [next(taken) for _ in range(frames)]
            page = torch.tensor(numbers, dtype=torch.int32)
            self.table[group, :frames] = page
            self.pages.keys[page.long()] = tensors["keys"][group, :frames]
            self.pages.values[page.long()] = tensors["values"][group, :frames]
        self._latest[:count] = tensors["cursor"].tolist()
        self.length[:count] = tensors["length"]
        self.cursor[:count] = tensors["cursor"]


def _give_back(pages: Pages, held: list[list[int]]) -> None:
    for group, numbers in enumerate(held):
        pages.give(numbers)
        held[group] = []


def _on_device(flags: Sequence[bool], device: torch.device) -> torch.Tensor:
    """Flags as a bool tensor, written by fills: a copy from the host would synchronise."""
    majority = 2 * sum(flags) > len(flags)
    tensor = torch.full((len(flags),), majority, device=device)
    for index, flag in enumerate(flags):
        if flag != majority:
            tensor[index] = flag
    return tensor
