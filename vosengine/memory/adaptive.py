"""The policy "afb": single features, of which near duplicates are merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..config import MemoryConfig
from .bank import Stored


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

    def make_room(self, count: int) -> None:
        """There is room: it was made at the start."""

    def release(self) -> None:
        """Forget all groups."""
        self.length.zero_()

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: Sequence[bool],
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
