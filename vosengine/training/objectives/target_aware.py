"""Training objective of target-aware U-VOS: its three networks, which share no parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from ...errors import ConfigError
from ...models.target_aware.network import TargetAware
from ..samples import Batch
from .appearance import Appearance
from .discovery import Discovery
from .embedding import Embedding
from .objective import Clips, Objective, check_sides, normalised

if TYPE_CHECKING:
    from ..recipe import Recipe

PARTS = ("dnet", "reid", "tnet")


class TargetAwareObjective(Objective[TargetAware]):
    """Losses of the selected networks.

    parts  any of "dnet" (discovery), "reid" (embedding) and "tnet" (appearance); the others get no
           gradient
    """

    all_parts = PARTS

    def __init__(
        self,
        method: TargetAware,
        parts: Collection[str] = PARTS,
        discovery: Discovery | None = None,
        appearance: Appearance | None = None,
    ) -> None:
        if not parts or not set(parts) <= set(PARTS):
            raise ConfigError(f"parts: wanted some of {', '.join(PARTS)}, given {parts!r}")
        super().__init__(method)
        known: dict[str, tuple[Discovery | Embedding | Appearance, Any]] = {
            "dnet": (discovery or Discovery(), method.dnet),
            "reid": (Embedding(), method.reid),
            "tnet": (appearance or Appearance(), method),
        }
        self._trained = [known[part] for part in PARTS if part in parts]

    @classmethod
    def of(cls, method: TargetAware, recipe: Recipe) -> TargetAwareObjective:
        return cls(method, recipe.parts, recipe.discovery, recipe.appearance)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        clips = self._clips(batch)
        losses: dict[str, torch.Tensor] = {}
        for part, network in self._trained:
            losses |= part.losses(network, clips, generator)
        return losses

    @torch.no_grad()
    def score(self, batch: Batch) -> float:
        """Mean score of the parts."""
        clips = self._clips(batch)
        scores = [part.score(network, clips) for part, network in self._trained]
        return sum(scores) / len(scores)

    def _clips(self, batch: Batch) -> Clips:
        check_sides(batch.frames, self.method.stride)
        frames = normalised(batch.frames, self.method.config)
        return Clips(frames, batch.masks, max(batch.counts))
