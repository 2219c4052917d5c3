"""Append-only memory for training with gradients through the memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..memory import Stored


class ClipMemory:
    """Memory of all frames of a clip in write order.

    Nothing is overwritten in place, so tensors saved for the backward pass stay valid, and every
    position is in use.
    """

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
        """Append a frame: key [O, P, Ck], value [O, P, Cv]; `keep` and `shown` have no effect."""
        self._keys.append(key)
        self._values.append(value)

    def read(self, count: int) -> Stored:
        """All frames: keys [O, T * P, Ck], values [O, T * P, Cv]; `count` has no effect."""
        return Stored(torch.cat(self._keys, dim=1), torch.cat(self._values, dim=1), None)
