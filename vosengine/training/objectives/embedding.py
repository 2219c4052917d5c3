"""What ReID is trained for: crops of one object are alike, those of any two are not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...models.target_aware.reid import ReID
from ...proposals import boxes_of
from ..losses import contrastive
from .objective import nothing_for, one_hot


@dataclass(frozen=True)
class Embedding:
    """Crops of the same object in several frames, against the clip's other objects and those of
    other clips. PReMVOS trains with triplets, which see one other crop at a time. (ours)

    views        crops of an object at most, of frames drawn at random
    jitter       each side of a box moves by up to this share of it, since the boxes in a stream are
                 those of predicted masks; below 1/2
    smallest     pixels; of less an object is not cropped
    temperature  of the softmax: lower ones care for the nearest of the others alone
    """

    views: int = 3
    jitter: float = 0.1
    smallest: int = 32
    temperature: float = 0.1

    def losses(
        self,
        reid: ReID,
        frames: torch.Tensor,
        masks: torch.Tensor,
        objects: int,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        """frames [B, T, 3, H, W] normalised; masks [B, T, H, W] ids up to `objects`."""
        vectors, identities = self._embed(reid, frames, masks, objects, generator)
        if vectors is None:
            return {"embedding": nothing_for(reid)}
        return {"embedding": contrastive(vectors, identities, self.temperature)}

    def score(self, reid: ReID, frames: torch.Tensor, masks: torch.Tensor, objects: int) -> float:
        """Of the crops whose object is in another one, the share that is most like such a one; 1
        without any. Arguments as in `losses`."""
        generator = torch.Generator().manual_seed(0)
        vectors, identities = self._embed(reid, frames, masks, objects, generator)
        if vectors is None:
            return 1.0
        likeness = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
        alike = (identities[:, None] == identities).fill_diagonal_(False)
        has_other = alike.any(dim=1)
        right = alike.gather(1, likeness.argmax(dim=1, keepdim=True))[has_other]
        return float(right.float().mean()) if len(right) else 1.0

    def _embed(
        self,
        reid: ReID,
        frames: torch.Tensor,
        masks: torch.Tensor,
        objects: int,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Embeddings [N, C] of the crops, None if there are none, and whose they are [N]."""
        crops: list[torch.Tensor] = []
        identities: list[int] = []
        owned = one_hot(masks, objects)[:, :, 1:] > 0  # [B, T, O, H, W]
        for (clip, index), rows in self._draw(owned, generator).items():
            boxes = self._jittered(boxes_of(owned[clip, index, rows]), generator)
            crops.append(reid.crop(frames[clip, index, None], boxes))
            identities += [clip * objects + row for row in rows]
        known = torch.tensor(identities, device=frames.device)
        return (reid.embed(torch.cat(crops)) if crops else None), known

    def _draw(
        self, owned: torch.Tensor, generator: torch.Generator
    ) -> dict[tuple[int, int], list[int]]:
        """The objects to crop from a frame, by clip and frame."""
        large = (owned.sum(dim=(3, 4)) >= self.smallest).cpu()
        chosen: dict[tuple[int, int], list[int]] = {}
        for clip, row in large.any(dim=1).nonzero().tolist():
            seen = large[clip, :, row].nonzero()[:, 0]
            order = torch.randperm(len(seen), generator=generator)[: self.views]
            for index in seen[order].tolist():
                chosen.setdefault((clip, index), []).append(row)
        return chosen

    def _jittered(self, boxes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        moves = self.jitter * (2 * torch.rand(len(boxes), 4, generator=generator) - 1)
        boxes = boxes.float()
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return boxes + moves.to(boxes.device) * sides
