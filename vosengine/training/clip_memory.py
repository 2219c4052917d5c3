"""A memory for clips whose gradients go back through what was read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..memory import Stored


class ClipMemory:
    """Every frame of a clip, in the order of writing; nothing is overwritten, so nothing that a
    gradient needs changes, and no position is without meaning."""

    def __init__(self) -> None:
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: Sequence[bool],
        shown: torch.Tensor | None = None,
    ) -> None:
        """Append one frame of all objects: key [O, P, Ck], value [O, P, Cv]."""
        self._keys.append(key)
        self._values.append(value)

    def read(self, count: int) -> Stored:
        return Stored(torch.cat(self._keys, dim=1), torch.cat(self._values, dim=1), None)
