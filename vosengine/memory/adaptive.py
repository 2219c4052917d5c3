"""AdaptiveBank: memory of single features for the policy "afb"; near duplicates are merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..config import MemoryConfig
from .bank import Stored


class AdaptiveBank:
    """AFB-URR's adaptive feature bank: near duplicates are merged, the least used are evicted.

    A new feature whose best cosine similarity to a stored key is at least `merge_similarity` is
    merged: the directions of stored and new key (and value) are mixed with weight `merge_rate`,
    and the mix keeps the stored norm (not renormalised, as in AFB-URR). Other features are
    appended. When a group's share of the budget is full, the features with the fewest merges per
    frame of age are evicted, except those of its first annotated frame, which come first (ours).
    Use is counted in merges, not in reads: reading never materialises the attention weights that
    AFB-URR counts (ours).

    A write depends on the contents, so it synchronises with the device, unlike other policies.

    keys    [G, N, Ck]
    values  [G, N, Cv]
    length  [G] int32    valid positions
    merges  [G, N]       number of merges per feature
    age     [G, N]       number of frames since the feature was stored
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
        self.capacity = max(2 * positions, config.budget // groups)  # at least two frames
        self.keys = torch.empty(groups, self.capacity, channels[0], device=device, dtype=dtype)
        self.values = torch.empty(groups, self.capacity, channels[1], device=device, dtype=dtype)
        self.length = torch.zeros(groups, device=device, dtype=torch.int32)
        self.merges = torch.zeros(groups, self.capacity, device=device)
        self.age = torch.zeros(groups, self.capacity, device=device)

    @property
    def nbytes(self) -> int:
        return sum(bank.nbytes for bank in (self.keys, self.values, self.merges, self.age))

    def make_room(self, count: int) -> None:
        """Does nothing: all memory is allocated at creation."""

    def release(self) -> None:
        """Clear all groups."""
        self.length.zero_()

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: Sequence[bool],
        shown: torch.Tensor | None = None,
    ) -> None:
        """Merge or append one frame's features of the groups `shown` [O] bool, or of all.

        key [O, P, Ck], value [O, P, Cv]; `keep` is ignored.
        """
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
            kept = rate.argsort(stable=True)[excess:].sort().values  # ties: the oldest is evicted
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
        """Remove a group; the last of the `count` groups moves into its place."""
        last = count - 1
        if group != last:
            for tensor in (self.keys, self.values, self.length, self.merges, self.age):
                tensor[group].copy_(tensor[last])
        self.length[last] = 0

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """The contents of the first `count` groups, by name, for saving; unused positions are 0."""
        used = int(self.length[:count].max()) if count else 0
        unused = torch.arange(used, device=self.length.device) >= self.length[:count, None]
        saved = {}
        for name in ("keys", "values", "merges", "age"):
            bank = getattr(self, name)[:count, :used]
            saved[name] = bank.masked_fill(unused[..., None] if bank.ndim == 3 else unused, 0)
        return {**saved, "length": self.length[:count]}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the contents that `tensors` returned."""
        count, used = tensors["keys"].shape[:2]
        for name in ("keys", "values", "merges", "age"):
            getattr(self, name)[:count, :used] = tensors[name]
        self.length.zero_()[:count] = tensors["length"]
