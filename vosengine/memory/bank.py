"""Whole frames of every object, in a ring of pages."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .pages import Pages


class Stored(NamedTuple):
    """What `read_memory` takes: keys [O, N, Ck], values [O, N, Cv], length [O] int32, or None where
    all N positions count; or, with pages [O, T] int32, keys and values of a pool of pages."""

    keys: torch.Tensor
    values: torch.Tensor
    length: torch.Tensor | None
    pages: torch.Tensor | None = None


class MemoryBank:
    """Frames of every group in a ring, slot 0 pinned to the group's first annotated frame. A slot
    has a page from its first frame on.

    table   [G, T] int32    the page of every slot
    length  [G] int32       valid positions, a multiple of P; on the device, so that a captured
                            graph stays valid while the memory grows
    cursor  [G] int64       the slot that the next write goes to; only `keep` moves it, so "the
                            previous frame until the next one" and "every fifth for good" are one
    """

    def __init__(self, groups: int, frames: int, pages: Pages) -> None:
        device = pages.keys.device
        self.pages = pages
        self.table = torch.zeros(groups, frames, device=device, dtype=torch.int32)
        self.length = torch.zeros(groups, device=device, dtype=torch.int32)
        self.cursor = torch.zeros(groups, device=device, dtype=torch.int64)
        self._rows = torch.arange(groups, device=device)
        self._held: list[list[int]] = [[] for _ in range(groups)]  # pages by group, as in `table`
        # The slot that a group's next write goes to at the latest: where groups are not shown, the
        # cursor lies before it, and only the device knows.
        self._latest = [0] * groups
        weakref.finalize(self, _give_back, pages, self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that it may come to hold."""
        return self.table.numel() * self.pages.page_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the pages that it holds."""
        return sum(map(len, self._held)) * self.pages.page_bytes

    def make_room(self, count: int) -> None:
        """See that the next frame of the first `count` groups has its pages. Raises CapacityError,
        before anything has changed."""
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
        """Store one frame of the first O groups.

        key [O, P, Ck], value [O, P, Cv], keep [O]: where it is False, the next write replaces this
        frame. shown [O] bool on the device: where it is False, the group stays as it is. No host
        synchronisation. Raises CapacityError, before anything has changed.
        """
        count = key.shape[0]
        self.make_room(count)
        frames, positions = self.table.shape[1], self.pages.keys.shape[1]
        rows, cursor = self._rows[:count], self.cursor[:count].clone()  # a gradient may need it
        page = self.table[rows, cursor].long()
        written = ((cursor + 1) * positions).to(torch.int32)
        moves = _on_device(keep, key.device)
        keys, values = self.pages.keys, self.pages.values
        if shown is not None:
            there = shown[:, None, None]
            key = torch.where(there, key, keys[page])
            value = torch.where(there, value, values[page])
            written = written.masked_fill(~shown, 0)
            moves = moves & shown
        keys[page] = key.to(keys.dtype)  # autocast has narrowed it in training
        values[page] = value.to(values.dtype)
        self.length[:count] = torch.maximum(self.length[:count], written)
        following = torch.where(cursor + 1 < frames, cursor + 1, 1)  # past slot 0, which is pinned
        self.cursor[:count] = torch.where(moves, following, cursor)
        for group, kept in enumerate(keep):
            self._latest[group] = min(self._latest[group] + kept, frames - 1)

    def read(self, count: int) -> Stored:
        """Of the first `count` groups; positions at or past `length` are undefined."""
        return Stored(self.pages.keys, self.pages.values, self.length[:count], self.table[:count])

    def forget(self, group: int, count: int) -> None:
        """Drop a group, whose pages are free; the last of the `count` groups takes its place."""
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
        """Forget all groups; every page is free."""
        _give_back(self.pages, self._held)
        self._latest = [0] * len(self._held)
        self.length.zero_()
        self.cursor.zero_()

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """All that is needed to go on: slots that hold something; zeros where one group has
        fewer than another."""
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
        """Take over what `tensors` gave. Raises CapacityError, before anything has changed but that
        all pages are free."""
        self.release()
        positions, count = self.pages.keys.shape[1], len(tensors["length"])
        used = [length // positions for length in tensors["length"].tolist()]
        taken = iter(self.pages.take(sum(used)))
        for group, frames in enumerate(used):
            held = self._held[group] = [next(taken) for _ in range(frames)]
            page = torch.tensor(held, dtype=torch.int32)
            self.table[group, :frames] = page
            self.pages.keys[page.long()] = tensors["keys"][group, :frames]
            self.pages.values[page.long()] = tensors["values"][group, :frames]
        self._latest[:count] = tensors["cursor"].tolist()
        self.length[:count] = tensors["length"]
        self.cursor[:count] = tensors["cursor"]


def _give_back(pages: Pages, held: list[list[int]]) -> None:
    for group, each in enumerate(held):
        pages.give(each)
        held[group] = []


def _on_device(flags: Sequence[bool], device: torch.device) -> torch.Tensor:
    """The same as a tensor, made by fills, which wait for nothing as a copy from the host would."""
    most = 2 * sum(flags) > len(flags)
    made = torch.full((len(flags),), most, device=device)
    for index, flag in enumerate(flags):
        if flag != most:
            made[index] = flag
    return made
