"""Memory of past frames: allocated once, bounded, its valid length kept on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional

from .config import MemoryConfig, ModelConfig
from .errors import ConfigError


class Stored(NamedTuple):
    """What `read_memory` takes: keys [O, N, Ck], values [O, N, Cv], length [O] int32, or None where
    all N positions count."""

    keys: torch.Tensor
    values: torch.Tensor
    length: torch.Tensor | None


class Memory(Protocol):
    """What the methods know of a memory, whatever its policy."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int: ...

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: torch.Tensor,
        shown: torch.Tensor | None = None,
    ) -> None: ...

    def read(self, count: int) -> Stored: ...

    def forget(self, group: int, count: int) -> None: ...

    def tensors(self, count: int) -> dict[str, torch.Tensor]: ...

    def restore(self, tensors: dict[str, torch.Tensor]) -> None: ...


def memory_of(
    model: str, config: ModelConfig, wanted: MemoryConfig | str | None
) -> MemoryConfig | None:
    """What a model's memory keeps: `wanted`, or the configuration's under that policy, or the
    configuration's own. None of a model without such a memory.

    Raises  ConfigError where that is wanted of such a model, or the policy is unknown.
    """
    own: MemoryConfig | None = getattr(config, "memory", None)
    if wanted is None:
        return own
    if own is None:
        raise ConfigError(f"memory: {model} has no memory to set; leave it out")
    return replace(own, policy=wanted) if isinstance(wanted, str) else wanted


def make_memory(
    config: MemoryConfig,
    *,
    groups: int,
    positions: int,
    key_channels: int,
    value_channels: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Memory:
    """The memory that a policy asks for: `groups` objects, `positions` cells a frame."""
    channels = (key_channels, value_channels)
    if config.policy == "afb":
        return AdaptiveBank(config, groups, positions, channels, device=device, dtype=dtype)
    return MemoryBank(groups, config.max_frames, positions, channels, device=device, dtype=dtype)


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


class AdaptiveBank:
    """AFB-URR's adaptive feature bank: near duplicates are merged, the least used are forgotten.

    A new feature whose best cosine similarity to a stored key is at least `merge_similarity` moves
    that key and value towards itself by `merge_rate`: both directions are mixed, and the mix takes
    the stored length (as there, it is not normalised anew). Any other is appended. When a group's
    share of the budget is full, the features with the fewest merges per frame of age make room,
    but never those of its first annotated frame, which stand first. [O] The use count is of merges,
    not of readings: reading never forms the attention weights that AFB-URR counts. [O]

    It decides by content, so a write waits for the device; every other policy does not.
    """

    def __init__(
        self,
        config: MemoryConfig,
        groups: int,
        positions: int,
        channels: tuple[int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.positions = positions
        self.capacity = max(2 * positions, config.budget // groups)  # room for two frames at least
        self.keys = torch.empty(groups, self.capacity, channels[0], device=device, dtype=dtype)
        self.values = torch.empty(groups, self.capacity, channels[1], device=device, dtype=dtype)
        self.length = torch.zeros(groups, device=device, dtype=torch.int32)
        self.merges = torch.zeros(groups, self.capacity, device=device)
        self.age = torch.zeros(groups, self.capacity, device=device)

    @property
    def nbytes(self) -> int:
        return sum(bank.nbytes for bank in (self.keys, self.values, self.merges, self.age))

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: torch.Tensor,
        shown: torch.Tensor | None = None,
    ) -> None:
        """Merge or append the features of one frame of the groups that are `shown`, or of all;
        `keep` has no meaning here."""
        groups = range(key.shape[0]) if shown is None else shown.nonzero().flatten().tolist()
        for group in groups:
            self._write_group(group, key[group], value[group])

    def _write_group(self, group: int, key: torch.Tensor, value: torch.Tensor) -> None:
        used = int(self.length[group])
        self.age[group, :used] += 1
        fresh = torch.ones(key.shape[0], dtype=torch.bool, device=key.device)
        if used:
            stored = functional.normalize(self.keys[group, :used].float(), dim=1)
            similarity = functional.normalize(key.float(), dim=1) @ stored.T
            best, nearest = similarity.max(dim=1)
            fresh = best < self.config.merge_similarity
            self._merge(group, used, nearest[~fresh], key[~fresh], value[~fresh])
        self._append(group, used, key[fresh], value[fresh])

    def _merge(
        self, group: int, used: int, target: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        if target.numel() == 0:
            return
        hits = torch.zeros(used, device=key.device).index_add_(
            0, target, torch.ones(target.shape[0], device=key.device)
        )
        touched = hits > 0
        for bank, new in ((self.keys, key), (self.values, value)):
            stored = bank[group, :used].float()
            size = stored.norm(dim=1, keepdim=True)
            unit = functional.normalize(new.float(), dim=1)
            mean = torch.zeros_like(stored).index_add_(0, target, unit) / hits.clamp(min=1)[:, None]
            rate = self.config.merge_rate
            moved = size * ((1 - rate) * functional.normalize(stored, dim=1) + rate * mean)
            bank[group, :used] = torch.where(touched[:, None], moved, stored).to(bank.dtype)
        self.merges[group, :used] += hits

    def _append(self, group: int, used: int, key: torch.Tensor, value: torch.Tensor) -> None:
        excess = used + key.shape[0] - self.capacity
        if excess > 0:
            rate = self.merges[group, :used] / self.age[group, :used]
            rate[: self.positions] = torch.inf
            kept = rate.argsort(stable=True)[excess:].sort().values  # of equals the oldest goes
            for bank in (self.keys, self.values, self.merges, self.age):
                bank[group, : kept.shape[0]] = bank[group, kept]
            used = kept.shape[0]
        end = used + key.shape[0]
        self.keys[group, used:end] = key
        self.values[group, used:end] = value
        self.merges[group, used:end] = 0
        self.age[group, used:end] = 0
        self.length[group] = end

    def read(self, count: int) -> Stored:
        """Views of the first `count` groups; positions at or past `length` are undefined."""
        return Stored(self.keys[:count], self.values[:count], self.length[:count])

    def forget(self, group: int, count: int) -> None:
        """Drop a group; the last of the `count` groups moves into its place."""
        last = count - 1
        if group != last:
            for tensor in (self.keys, self.values, self.length, self.merges, self.age):
                tensor[group].copy_(tensor[last])
        self.length[last] = 0

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """All that is needed to go on, likewise."""
        used = int(self.length[:count].max()) if count else 0
        unused = torch.arange(used, device=self.length.device) >= self.length[:count, None]
        saved = {}
        for name in ("keys", "values", "merges", "age"):
            bank = getattr(self, name)[:count, :used]
            saved[name] = bank.masked_fill(unused[..., None] if bank.ndim == 3 else unused, 0)
        return {**saved, "length": self.length[:count]}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        count, used = tensors["keys"].shape[:2]
        for name in ("keys", "values", "merges", "age"):
            getattr(self, name)[:count, :used] = tensors[name]
        self.length.zero_()[:count] = tensors["length"]
