"""Training objective of ReID: contrastive loss over crops of objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...models.target_aware.reid import ReID
from ...proposals import boxes_of
from ..losses import contrastive
from .objective import Clips, nothing_for, one_hot


@dataclass(frozen=True)
class Embedding:
    """Contrastive loss: crops of one object are positives, other objects in the batch negatives.

    (ours) PReMVOS trains with triplets, which have one negative each.

    views        maximum number of crops per object, from random frames
    jitter       maximum shift of each side of a box, relative to the box, below 1/2; in a stream
                 boxes are those of predicted masks
    smallest     minimum area of an object in pixels
    temperature  of the softmax; lower ones emphasise the hardest negatives
    """

    views: int = 3
    jitter: float = 0.1
    smallest: int = 32
    temperature: float = 0.1

    def losses(
        self, reid: ReID, clips: Clips, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The loss, by name; 0 without crops."""
        vectors, identities = self._embed(reid, clips, generator)
        if vectors is None:
            return {"embedding": nothing_for(reid)}
        return {"embedding": contrastive(vectors, identities, self.temperature)}

    def score(self, reid: ReID, clips: Clips) -> float:
        """Top-1 retrieval accuracy: share of crops whose nearest crop is of the same object, among
        crops with a positive; 1 without any."""
        vectors, identities = self._embed(reid, clips, torch.Generator().manual_seed(0))
        if vectors is None:
            return 1.0
        similarity = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
        positive = (identities[:, None] == identities).fill_diagonal_(False)
        has_positive = positive.any(dim=1)
        right = positive.gather(1, similarity.argmax(dim=1, keepdim=True))[has_positive]
        return float(right.float().mean()) if len(right) else 1.0

    def _embed(
        self, reid: ReID, clips: Clips, generator: torch.Generator
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Embeddings [N, C] of the crops (None without crops), and their objects' identities
        [N]."""
        crops: list[torch.Tensor] = []
        identities: list[int] = []
        owned = one_hot(clips.masks, clips.objects)[:, :, 1:] > 0  # [B, T, O, H, W]
        for (clip, index), rows in self._draw(owned, generator).items():
            boxes = self._jittered(boxes_of(owned[clip, index, rows]), generator)
            crops.append(reid.crop(clips.frames[clip, index, None], boxes))
            identities += [clip * clips.objects + row for row in rows]
        known = torch.tensor(identities, device=clips.frames.device)
        return (reid.embed(torch.cat(crops)) if crops else None), known

    def _draw(
        self, owned: torch.Tensor, generator: torch.Generator
    ) -> dict[tuple[int, int], list[int]]:
        """Draw the objects to crop, by (clip, frame)."""
        large = (owned.sum(dim=(3, 4)) >= self.smallest).cpu()
        chosen: dict[tuple[int, int], list[int]] = {}
        for clip, row in large.any(dim=1).nonzero().tolist():
            visible = large[clip, :, row].nonzero()[:, 0]
            order = torch.randperm(len(visible), generator=generator)[: self.views]
            for index in visible[order].tolist():
                chosen.setdefault((clip, index), []).append(row)
        return chosen

    def _jittered(self, boxes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        moves = self.jitter * (2 * torch.rand(len(boxes), 4, generator=generator) - 1)
        boxes = boxes.float()
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return boxes + moves.to(boxes.device) * sides
