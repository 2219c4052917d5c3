"""How models that follow masks are trained: recurrently, by the verbs that the engine calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from ...config import GIELConfig, MatchingConfig, ModelConfig, MUNetConfig, STMConfig
from ...models.dmn_aoa import DMNAOA
from ...models.giel import GIELEvidence
from ...models.method import Method
from ...types import Geometry, Masks, Scores
from ..forking import blank, fork
from ..losses import binary, cross_entropy, hardest, soft_aggregation, soft_iou
from ..samples import Batch
from .objective import Objective, normalised, one_hot
from .proposals import draw_proposals

# A clip has a twentieth of a stream's positions. Read as sharply as a stream, it would teach less.
SOFTER = 0.5
WHOLLY_LOST, LEAKS = 0.15, 0.3  # of spoilt masks: those of which nothing, or too much, is left


@dataclass(frozen=True)
class FollowingLosses:
    """Weights of the losses on every predicted frame.

    cross_entropy  of the soft aggregation, its mean over the hardest `share` of the pixels
    iou            1 - soft IoU of every object
    saliency       GIEL's global map against the union of all objects
    readout        the masks that were read from the memory, where the model reads them [O]
    objects        followed in a clip, the rest is background; drawn anew every time [O]
    spoilt         chance that a predicted mask has a part cut out or added before the memory sees
                   it, so that the network learns to recover [O]
    """

    cross_entropy: float = 1.0
    share: float = 1.0
    iou: float = 0.0
    saliency: float = 0.0
    readout: float = 0.0
    objects: int = 6
    spoilt: float = 0.0


PUBLISHED = {
    "stm": FollowingLosses(),
    "munet": FollowingLosses(share=0.4, iou=1.0),
    "giel": FollowingLosses(saliency=1.0),
    "dmn_aoa": FollowingLosses(),
}


class FollowingObjective(Objective[Method[Any, Any]]):
    """The first frame comes with its mask; in every later one what was predicted is remembered.

    Gradients go back through the memory, as far as the method lets them: GIEL sees labels.
    """

    def __init__(self, method: Method[Any, Any], weights: FollowingLosses) -> None:
        super().__init__(method)
        self.weights = weights

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        total: dict[str, torch.Tensor] = {}
        predicted = 0
        for index in range(len(batch.frames)):
            masks = from_first(batch.masks[index], self.weights.objects, generator)
            for t, scores, answer in self._follow(batch.frames[index], masks, generator):
                predicted += 1
                for name, loss in self._frame_losses(scores, answer, masks[t]).items():
                    total[name] = total.get(name, torch.zeros(())) + loss
        return {name: loss / max(1, predicted) for name, loss in total.items()}

    @torch.no_grad()
    def score(self, batch: Batch) -> float:
        """Mean J over clips, objects and all frames after the first."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for index in range(len(batch.frames)):
            masks = from_first(batch.masks[index])
            for t, _, answer in self._follow(batch.frames[index], masks, generator):
                labels = answer.argmax(dim=0)
                for each in range(1, len(answer)):
                    own, target = labels == each, masks[t] == each
                    joined = (own | target).sum()
                    found.append(float((own & target).sum() / joined) if joined else 1.0)
        return sum(found) / max(1, len(found))

    def _follow(
        self, frames: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
    ) -> Iterator[tuple[int, Scores, torch.Tensor]]:
        """Every frame after the first: its index, scores, and ln probabilities at full size.

        While gradients are wanted, predicted masks are now and then spoilt before they are
        remembered.
        """
        method, count = self.method, int(masks[0].max())
        if count == 0:
            return
        size = (masks.shape[1], masks.shape[2])
        geometry = Geometry.fit(size, size=None, multiple=method.stride)
        state = method.start(geometry, count)
        blank(state)
        pictures = normalised(frames, method.config)
        seen = [self._encode(pictures[:1], masks[:1], count, generator)]
        given = Masks(one_hot(masks[0], count), tuple(range(count)))
        method.remember(self._window(seen), given, state)
        for t in range(1, len(frames)):
            seen.append(self._encode(pictures[t : t + 1], masks[t : t + 1], count, generator))
            scores = method.segment(self._window(seen), state)
            answer = soft_aggregation(scores.logits, size)
            yield t, scores, answer
            if t + 1 < len(frames):
                fork(state)
                shown = answer.exp()
                if torch.is_grad_enabled() and _chance(self.weights.spoilt, generator):
                    shown = spoil(shown, generator)
                method.remember(self._window(seen), Masks(shown, (), scores.evidence), state)

    def _encode(
        self, frame: torch.Tensor, mask: torch.Tensor, count: int, generator: torch.Generator
    ) -> Any:
        if not isinstance(self.method, DMNAOA):
            return self.method.encode(frame)
        return self.method.encode(frame, [draw_proposals(mask[0], count, generator)])

    def _window(self, seen: list[Any]) -> list[Any]:
        return [seen[max(0, len(seen) - 1 + offset)] for offset in self.method.sees]

    def _frame_losses(
        self, scores: Scores, answer: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        weights, count = self.weights, len(answer) - 1
        targets = one_hot(labels, count)[1:]
        found = {
            "ce": weights.cross_entropy * hardest(cross_entropy(answer, labels), weights.share)
        }
        if weights.iou:
            found["iou"] = weights.iou * soft_iou(answer[1:].exp(), targets)
        evidence, read = scores.evidence, scores.evidence
        if isinstance(evidence, GIELEvidence):
            union = _shrunk(targets.amax(dim=0, keepdim=True), evidence.saliency)
            found["saliency"] = weights.saliency * binary(evidence.saliency, union).mean()
            read = evidence.read if evidence.read is None else evidence.read[1:]
        if weights.readout and isinstance(read, torch.Tensor):
            covered = _shrunk(targets, read)
            likely = read.clamp(1e-4, 1 - 1e-4)
            found["readout"] = weights.readout * functional.binary_cross_entropy(likely, covered)
        return found


def _chance(share: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < share


def _shrunk(targets: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Masks [O, H, W] as shares of the cells of a coarser grid."""
    height, width = like.shape[-2:]
    return functional.adaptive_avg_pool2d(targets[None], (height, width))[0]


def from_first(
    masks: torch.Tensor, limit: int = 255, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Masks [T, H, W] of the objects that the first frame shows, at most `limit` of them, drawn at
    random, numbered without gaps; the others become background."""
    table = masks.new_zeros(256)
    shown = torch.unique(masks[0])
    shown = shown[shown > 0]
    if len(shown) > limit:
        shown = shown[torch.randperm(len(shown), generator=generator)[:limit]]
    ids = torch.arange(1, 1 + len(shown), device=masks.device)
    table[shown.long()] = ids.to(masks.dtype)
    return table[masks.long()]


def spoil(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[1 + O, H, W] in which one object has lost a part, or all of it, or has leaked into the
    background around it: a rectangle about one of its pixels."""
    height, width = probabilities.shape[1:]
    draw = torch.rand(6, generator=generator).tolist()
    slot = 1 + int(draw[0] * (len(probabilities) - 1))
    places = (probabilities[slot] > 0.5).nonzero()
    if len(places) == 0:
        return probabilities
    y, x = places[int(draw[1] * len(places))].tolist()
    reach = 1.0 if draw[2] < WHOLLY_LOST else 0.05 + 0.25 * draw[3]
    half = round(reach * height * (0.5 + draw[4])), round(reach * width * (1.5 - draw[4]))
    rows = slice(max(0, y - half[0]), y + half[0] + 1)
    columns = slice(max(0, x - half[1]), x + half[1] + 1)
    loses, gains = (0, slot) if reach < 1 and draw[5] < LEAKS else (slot, 0)
    moved = torch.zeros_like(probabilities)
    moved[gains, rows, columns] = probabilities[loses, rows, columns]
    moved[loses, rows, columns] = -probabilities[loses, rows, columns]
    return probabilities + moved


def for_clips(config: ModelConfig, frames: int) -> ModelConfig:
    """The configuration with which clips of so many frames are trained. No parameter differs; but
    every frame is remembered, there is no room for more, and scores are softer."""
    changes: dict[str, Any] = {}
    if isinstance(config, MatchingConfig):
        memory = replace(config.memory, policy="all", max_frames=max(2, frames))
        changes["memory"] = memory
    if isinstance(config, STMConfig | MUNetConfig | GIELConfig):
        changes["sharpness"] = SOFTER * config.sharpness
    return replace(config, **changes)
