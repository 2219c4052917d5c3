"""Training objective of target-aware U-VOS: its three networks, which share no parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from ...errors import ConfigError
from ...models.target_aware.network import TargetAware
from ..samples import Batch
from .appearance import Appearance
from .discovery import Discovery, discovery_score
from .embedding import Embedding
from .objective import Objective, check_sides, normalised

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
        *,
        discovery: Discovery | None = None,
        embedding: Embedding | None = None,
        appearance: Appearance | None = None,
    ) -> None:
        if not parts or not set(parts) <= set(PARTS):
            raise ConfigError(f"parts: wanted some of {', '.join(PARTS)}, given {parts!r}")
        super().__init__(method)
        self.parts = frozenset(parts)
        self.discovery = discovery or Discovery()
        self.embedding = embedding or Embedding()
        self.appearance = appearance or Appearance()

    @classmethod
    def of(cls, method: TargetAware, recipe: Recipe) -> TargetAwareObjective:
        return cls(method, recipe.parts, discovery=recipe.discovery, appearance=recipe.appearance)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        method, clips = self.method, self._clips(batch)
        losses: dict[str, torch.Tensor] = {}
        if "dnet" in self.parts:
            losses |= self.discovery.losses(method.dnet, *clips, generator)
        if "reid" in self.parts:
            losses |= self.embedding.losses(method.reid, *clips, generator)
        if "tnet" in self.parts:
            losses |= self.appearance.losses(method, *clips, generator)
        return losses

    def score(self, batch: Batch) -> float:
        """The mean of `scores`."""
        scores = self.scores(batch)
        return sum(scores.values()) / len(scores)

    @torch.no_grad()
    def scores(self, batch: Batch) -> dict[str, float]:
        """Scores by part in 0..1: IoU of each object's best proposal (dnet), retrieval accuracy of
        crops (reid), IoU of tracks (tnet)."""
        method, clips = self.method, self._clips(batch)
        scores: dict[str, float] = {}
        if "dnet" in self.parts:
            scores["dnet"] = discovery_score(method.dnet, *clips)
        if "reid" in self.parts:
            scores["reid"] = self.embedding.score(method.reid, *clips)
        if "tnet" in self.parts:
            scores["tnet"] = self.appearance.score(method, *clips)
        return scores

    def _clips(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Normalised frames [B, T, 3, H, W], masks [B, T, H, W] and the highest id."""
        check_sides(batch.frames, self.method.stride)
        frames = normalised(batch.frames, self.method.config)
        return frames, batch.masks, max(batch.counts)
