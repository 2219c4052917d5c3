"""How models that follow masks are trained: recurrently, by the verbs that the engine calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from ...config import MemoryConfig, ModelConfig
from ...models.giel.network import GIELAux
from ...models.method import Method, join_masks, rows_of, split_scores
from ...types import Geometry, Scores
from ..clip_memory import ClipMemory
from ..forking import blank, fork
from ..losses import (
    LEAST,
    binary,
    cross_entropy,
    hardest,
    soft_aggregation,
    soft_iou,
)
from ..samples import Batch
from .objective import Objective, normalised, one_hot
from .proposals import draw_proposals

if TYPE_CHECKING:
    from ..recipe import Recipe

# A clip has a twentieth of a stream's positions. Read as sharply as a stream, it would teach less.
SOFTER = 0.5
# Of spoilt masks: those whose outline has drifted; of the others those that are lost, or leak.
WORN, WHOLLY_LOST, LEAKS = 0.6, 0.15, 0.3
MOST_WORN = 4  # pixels by which an outline drifts
GROWN = 0.65  # of those whose outline drifts; the others shrink


@dataclass(frozen=True)
class FollowingLosses:
    """Weights of the losses on every predicted frame.

    cross_entropy  of the soft aggregation, its mean over the hardest `share` of the pixels
    mean           of the same, its mean over all pixels (ours)
    iou            1 - soft IoU of every object
    saliency       GIEL's global map against the union of all objects
    readout        the masks that were read from the memory, where the model reads them (ours)
    objects        followed in a clip, the rest is background; drawn anew every time (ours)
    spoilt         chance that a predicted mask has a part cut out or added before the memory sees
                   it, so that the network learns to recover (ours)
    """

    cross_entropy: float = 1.0
    share: float = 1.0
    mean: float = 0.0
    iou: float = 0.0
    saliency: float = 0.0
    readout: float = 0.0
    objects: int = 6
    spoilt: float = 0.0


class Step(NamedTuple):
    """What a model says of one clip's frame: `time` in the clip, its scores, ln probabilities
    [1 + O, H, W], and labels [H, W] to compare them with."""

    time: int
    scores: Scores
    answer: torch.Tensor
    labels: torch.Tensor


class FollowingObjective(Objective[Method[Any, Any]]):
    """The first frame comes with its mask; in every later one what was predicted is remembered.

    Gradients go back through the memory, as far as the method lets them: GIEL sees labels. Methods
    that take the objects of several streams at once are given all clips of a batch together.
    """

    def __init__(self, method: Method[Any, Any], weights: FollowingLosses) -> None:
        super().__init__(method)
        self.weights = weights

    @classmethod
    def of(cls, method: Method[Any, Any], recipe: Recipe) -> FollowingObjective:
        return cls(method, recipe.losses)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        total: dict[str, torch.Tensor] = {}
        masks = [from_first(clip, self.weights.objects, generator) for clip in batch.masks]
        predicted = 0
        for step in self._steps(batch.frames, masks, generator):
            predicted += 1
            for name, loss in self._frame_losses(step).items():
                total[name] = total.get(name, torch.zeros(())) + loss
        return {name: loss / max(1, predicted) for name, loss in total.items()}

    @torch.no_grad()
    def score(self, batch: Batch) -> float:
        """Mean J over clips, objects and all frames after the first."""
        generator = torch.Generator().manual_seed(0)
        found = []
        masks = [from_first(clip) for clip in batch.masks]
        for step in self._steps(batch.frames, masks, generator):
            labels = step.answer.argmax(dim=0)
            for each in range(1, len(step.answer)):
                own, target = labels == each, step.labels == each
                joined = (own | target).sum()
                found.append(float((own & target).sum() / joined) if joined else 1.0)
        return sum(found) / max(1, len(found))

    def _steps(
        self, frames: torch.Tensor, masks: list[torch.Tensor], generator: torch.Generator
    ) -> Iterator[Step]:
        """Every frame after the first of all clips [B, T, H, W, 3] that show an object in it."""
        shown = [i for i, clip in enumerate(masks) if clip[0].any()]
        together = [shown] if self.method.batched else [[i] for i in shown]
        for clips in together:
            if clips:
                chosen = torch.stack([masks[i] for i in clips])
                yield from self._follow(frames[clips], chosen, generator)

    def _follow(
        self, frames: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
    ) -> Iterator[Step]:
        """Clips [B, T, H, W, 3] side by side, their objects one after the other.

        While gradients are wanted, predicted masks are now and then spoilt before they are
        remembered.
        """
        method, length = self.method, masks.shape[1]
        counts = [int(clip[0].max()) for clip in masks]
        size = (masks.shape[2], masks.shape[3])
        geometry = Geometry.fit(size, size=None, multiple=method.stride)
        memory = MemoryConfig("all", max_frames=max(2, length))  # every frame, no room for more
        state = method.start(geometry, sum(counts), memory)
        blank(state)
        if method.batched:
            state.memory = ClipMemory()
        streams = torch.arange(len(masks)).repeat_interleave(torch.tensor(counts))
        streams = streams.to(frames.device)
        if len(masks) > 1:
            state.streams = streams
        seen = self._encode(frames, masks, counts, generator)
        given = [one_hot(clip[0], count) for clip, count in zip(masks, counts, strict=True)]
        prompted = tuple(range(sum(counts)))
        method.remember(self._window(seen, 0), join_masks(given, streams, prompted), state)
        for t in range(1, length):
            scores = method.segment(self._window(seen, t), state)
            answers = []
            for clip, part in enumerate(split_scores(scores, counts)):
                answers.append(soft_aggregation(part.logits, size))
                yield Step(t, part, answers[-1], masks[clip, t])
            if t + 1 < length:
                fork(state)
                predicted = [answer.exp() for answer in answers]
                if torch.is_grad_enabled():
                    predicted = [
                        spoil(each, generator) if _chance(self.weights.spoilt, generator) else each
                        for each in predicted
                    ]
                remembered = join_masks(predicted, streams, (), scores.aux)
                method.remember(self._window(seen, t), remembered, state)

    def _encode(
        self,
        frames: torch.Tensor,
        masks: torch.Tensor,
        counts: list[int],
        generator: torch.Generator,
    ) -> list[Any]:
        """Features of every frame, by time: a row for each clip."""
        pictures = normalised(frames, self.method.config)
        length = pictures.shape[1]
        if self.method.needs_proposals:
            drawn = [[draw_proposals(masks[0, t], counts[0], generator)] for t in range(length)]
            return [self.method.encode(pictures[:, t], drawn[t]) for t in range(length)]
        encoded = self.method.encode(pictures.transpose(0, 1).flatten(0, 1))
        clips = len(frames)
        return [rows_of(encoded, slice(t * clips, (t + 1) * clips)) for t in range(length)]

    def _window(self, seen: list[Any], time: int) -> list[Any]:
        return [seen[max(0, time + offset)] for offset in self.method.sees]

    def _frame_losses(self, step: Step) -> dict[str, torch.Tensor]:
        weights, count = self.weights, len(step.answer) - 1
        targets = one_hot(step.labels, count)[1:]
        surprise = cross_entropy(step.answer, step.labels)
        found = {"ce": weights.cross_entropy * hardest(surprise, weights.share)}
        if weights.mean:
            found["mean"] = weights.mean * surprise.mean()
        if weights.iou:
            found["iou"] = weights.iou * soft_iou(step.answer[1:].exp(), targets)
        aux, read = step.scores.aux, step.scores.aux
        if isinstance(aux, GIELAux):
            union = _shrunk(targets.amax(dim=0, keepdim=True), aux.saliency)
            found["saliency"] = weights.saliency * binary(aux.saliency, union).mean()
            read = aux.read if aux.read is None else aux.read[1:]
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
    """[1 + O, H, W] of which one object is no longer what it was: its outline has drifted, or it
    has lost a part, or all of it, or has leaked into the background around it."""
    if _chance(WORN, generator):
        return worn(probabilities, generator)
    return cut(probabilities, generator)


def worn(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[1 + O, H, W] in which one object has grown or shrunk by up to MOST_WORN pixels, not by the
    same on all sides, as masks do that are carried from frame to frame."""
    slot = 1 + int(float(torch.rand((), generator=generator)) * (len(probabilities) - 1))
    if not (probabilities[slot] > 0.5).any():
        return probabilities
    moved = drifted(probabilities[slot], MOST_WORN, generator)
    # The others keep their proportions; where there are none, the background has the rest.
    others = probabilities.clone()
    others[slot] = 0
    others[0] += LEAST
    others *= (1 - moved) / others.sum(dim=0)
    others[slot] = moved
    return others


def drifted(own: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """A soft mask [H, W] that has grown or shrunk by 1 to `most` pixels, and moved by as many."""
    draw = torch.rand(4, generator=generator).tolist()
    reach = 1 + int(draw[0] * most)
    sign = 1 if draw[1] < GROWN else -1
    moved = sign * functional.max_pool2d(sign * own[None], 2 * reach + 1, 1, reach)
    moved = functional.pad(moved, (reach,) * 4, mode="replicate")[0]
    top, left = (reach + round((2 * each - 1) * reach) for each in draw[2:])
    return moved[top : top + own.shape[0], left : left + own.shape[1]]


def cut(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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


def for_clips(config: ModelConfig) -> ModelConfig:
    """The configuration with which short clips are trained. No parameter differs; but all of the
    memory is read, and l2 and dot scores are softer."""
    changes: dict[str, Any] = {}
    if hasattr(config, "top_k"):
        changes["top_k"] = None
    if getattr(config, "similarity", "cosine") != "cosine":
        changes["sharpness"] = SOFTER * config.sharpness  # type: ignore[union-attr]
    return replace(config, **changes)
