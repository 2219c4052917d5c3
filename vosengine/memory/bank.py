"""Whole frames of every object, in a ring."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Stored(NamedTuple):
    """What `read_memory` takes: keys [O, N, Ck], values [O, N, Cv], length [O] int32, or None where
    all N positions count."""

    keys: torch.Tensor
    values: torch.Tensor
    length: torch.Tensor | None


class MemoryBank:
    """Frames of every group in a ring, slot 0 pinned to the group's first annotated frame.

    keys    [G, T, P, Ck]   values [G, T, P, Cv]
    length  [G] int32       valid positions, a multiple of P; on the device, so that a captured
                            graph stays valid while the memory grows
    cursor  [G] int64       the slot that the next write goes to; only `keep` moves it, so "the
                            previous frame until the next one" and "every fifth for good" are one
    """

    def __init__(
        self,
        groups: int,
        frames: int,
        positions: int,
        channels: tuple[int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.keys = torch.empty(groups, frames, positions, channels[0], device=device, dtype=dtype)
        self.values = torch.empty(
            groups, frames, positions, channels[1], device=device, dtype=dtype
        )
        self.length = torch.zeros(groups, device=device, dtype=torch.int32)
        self.cursor = torch.zeros(groups, device=device, dtype=torch.int64)
        self._rows = torch.arange(groups, device=device)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: torch.Tensor,
        shown: torch.Tensor | None = None,
    ) -> None:
        """Store one frame of the first O groups.

        key [O, P, Ck], value [O, P, Cv], keep [O] bool on the device: where it is False, the next
        write replaces this frame. shown [O] bool on the device: where it is False, the group stays
        as it is. No host synchronisation.
        """
        count = key.shape[0]
        frames, positions = self.keys.shape[1:3]
        rows, cursor = self._rows[:count], self.cursor[:count].clone()  # a gradient may need it
        written = ((cursor + 1) * positions).to(torch.int32)
        if shown is not None:
            there = shown[:, None, None]
            key = torch.where(there, key, self.keys[rows, cursor])
            value = torch.where(there, value, self.values[rows, cursor])
            written = written.masked_fill(~shown, 0)
            keep = keep & shown
        self.keys[rows, cursor] = key.to(self.keys.dtype)  # autocast has narrowed it in training
        self.values[rows, cursor] = value.to(self.values.dtype)
        self.length[:count] = torch.maximum(self.length[:count], written)
        following = torch.where(cursor + 1 < frames, cursor + 1, 1)  # past slot 0, which is pinned
        self.cursor[:count] = torch.where(keep, following, cursor)

    def read(self, count: int) -> Stored:
        """Views of the first `count` groups; positions at or past `length` are undefined."""
        return Stored(
            self.keys[:count].flatten(1, 2), self.values[:count].flatten(1, 2), self.length[:count]
        )

    def forget(self, group: int, count: int) -> None:
        """Drop a group; the last of the `count` groups moves into its place."""
        last = count - 1
        if group != last:
            for tensor in (self.keys, self.values, self.length, self.cursor):
                tensor[group].copy_(tensor[last])
        self.length[last] = 0
        self.cursor[last] = 0

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """All that is needed to go on: slots that hold something; zeros where one group has
        fewer than another."""
        used = int(self.length[:count].max()) // self.keys.shape[2] if count else 0
        frames = torch.arange(used, device=self.length.device) * self.keys.shape[2]
        unused = (frames >= self.length[:count, None])[..., None, None]
        return {
            "keys": self.keys[:count, :used].masked_fill(unused, 0),
            "values": self.values[:count, :used].masked_fill(unused, 0),
            "length": self.length[:count],
            "cursor": self.cursor[:count],
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        count, used = tensors["keys"].shape[:2]
        self.keys[:count, :used] = tensors["keys"]
        self.values[:count, :used] = tensors["values"]
        self.length.zero_()[:count] = tensors["length"]
        self.cursor.zero_()[:count] = tensors["cursor"]
