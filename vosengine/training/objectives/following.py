"""Training objective of mask propagation models: unrolled over a clip by the method's verbs."""

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
from ..losses import LEAST, binary, cross_entropy, hardest, soft_aggregation, soft_iou
from ..samples import Batch
from .objective import Objective, iou_of_each, normalised, one_hot
from .proposals import draw_proposals

if TYPE_CHECKING:
    from ..recipe import Recipe

# Factor on the sharpness in training: a clip has a twentieth of a stream's memory positions, and
# softer reads give more gradient.
SOFTER = 0.5
# Probabilities of mask corruptions: drifted outline; otherwise object lost, or leaking.
WORN, WHOLLY_LOST, LEAKS = 0.6, 0.15, 0.3
MOST_WORN = 4  # maximum drift of an outline, in pixels
GROWN = 0.65  # probability that a drifting outline grows rather than shrinks


@dataclass(frozen=True)
class FollowingLosses:
    """Weights of the losses on each predicted frame.

    cross_entropy  cross-entropy of the soft aggregation, over the hardest `share` of the pixels
    mean           the same over all pixels (ours)
    iou            soft IoU loss, averaged over objects
    saliency       BCE of GIEL's global map with the union of all objects
    readout        BCE of the masks read from memory, for models that read them (ours)
    objects        maximum number of objects per clip, drawn each time; the rest is background
                   (ours)
    spoilt         probability that a predicted mask is corrupted before it is remembered, so that
                   the network learns to recover (ours)
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
    """Prediction for one frame of one clip, and its labels."""

    time: int  # frame index in the clip
    scores: Scores
    answer: torch.Tensor  # [1 + O, H, W] log probabilities
    labels: torch.Tensor  # [H, W] ids


class FollowingObjective(Objective[Method[Any, Any]]):
    """Propagates the first frame's masks through a clip; later frames remember their predictions.

    Gradients flow through the memory as far as the method allows (GIEL stores labels, which have no
    gradient). A `batched` method gets all clips of the batch at once.
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
        ious: list[float] = []
        masks = [from_first(clip) for clip in batch.masks]
        for step in self._steps(batch.frames, masks, generator):
            labels, count = step.answer.argmax(dim=0), len(step.answer) - 1
            owned = (one_hot(x, count)[1:] > 0 for x in (labels, step.labels))
            ious += iou_of_each(*owned).tolist()
        return sum(ious) / max(1, len(ious))

    def _steps(
        self, frames: torch.Tensor, masks: list[torch.Tensor], generator: torch.Generator
    ) -> Iterator[Step]:
        """Predictions for all frames after the first of clips [B, T, H, W, 3], without clips whose
        first frame has no object."""
        usable = [i for i, clip in enumerate(masks) if clip[0].any()]
        groups = [usable] if self.method.batched else [[i] for i in usable]
        for clips in groups:
            if clips:
                chosen = torch.stack([masks[i] for i in clips])
                yield from self._follow(frames[clips], chosen, generator)

    def _follow(
        self, frames: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
    ) -> Iterator[Step]:
        """Propagate through clips [B, T, H, W, 3] in parallel, objects in clip order.

        With gradients enabled, predicted masks are corrupted with probability `spoilt` before they
        are remembered.
        """
        method, length = self.method, masks.shape[1]
        counts = [int(clip[0].max()) for clip in masks]
        size = (masks.shape[2], masks.shape[3])
        geometry = Geometry.fit(size, size=None, multiple=method.stride)
        memory = MemoryConfig("all", max_frames=max(2, length))  # exactly the clip's frames
        state = method.start(geometry, sum(counts), memory)
        blank(state)
        if method.batched:
            state.memory = ClipMemory()
        streams = torch.arange(len(masks)).repeat_interleave(torch.tensor(counts))
        streams = streams.to(frames.device)
        if len(masks) > 1:
            state.streams = streams
        seen = self._encode(frames, masks, counts, generator)
        first = [one_hot(clip[0], count) for clip, count in zip(masks, counts, strict=True)]
        prompted = tuple(range(sum(counts)))
        method.remember(self._window(seen, 0), join_masks(first, streams, prompted), state)
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
                        spoil(clip, generator) if _chance(self.weights.spoilt, generator) else clip
                        for clip in predicted
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
        """Features per time step, with one row per clip."""
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
        ce = cross_entropy(step.answer, step.labels)
        losses = {"ce": weights.cross_entropy * hardest(ce, weights.share)}
        if weights.mean:
            losses["mean"] = weights.mean * ce.mean()
        if weights.iou:
            losses["iou"] = weights.iou * soft_iou(step.answer[1:].exp(), targets)
        aux, read = step.scores.aux, step.scores.aux
        if isinstance(aux, GIELAux):
            union = _pooled(targets.amax(dim=0, keepdim=True), aux.saliency)
            losses["saliency"] = weights.saliency * binary(aux.saliency, union).mean()
            read = aux.read if aux.read is None else aux.read[1:]
        if weights.readout and isinstance(read, torch.Tensor):
            covered = _pooled(targets, read)
            clamped = read.clamp(1e-4, 1 - 1e-4)
            losses["readout"] = weights.readout * functional.binary_cross_entropy(clamped, covered)
        return losses


def _chance(probability: float, generator: torch.Generator) -> bool:
    """True with the given probability."""
    return float(torch.rand((), generator=generator)) < probability


def _pooled(targets: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Average-pool masks [O, H, W] to the grid of `like` [..., h, w]."""
    height, width = like.shape[-2:]
    return functional.adaptive_avg_pool2d(targets[None], (height, width))[0]


def from_first(
    masks: torch.Tensor, limit: int = 255, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Keep the objects of the first frame in masks [T, H, W], at most `limit` drawn at random,
    renumbered without gaps; the others become background."""
    table = masks.new_zeros(256)
    present = torch.unique(masks[0])
    present = present[present > 0]
    if len(present) > limit:
        present = present[torch.randperm(len(present), generator=generator)[:limit]]
    ids = torch.arange(1, 1 + len(present), device=masks.device)
    table[present.long()] = ids.to(masks.dtype)
    return table[masks.long()]


def spoil(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Corrupt the mask of one object in probabilities [1 + O, H, W]: `worn` with probability WORN,
    else `cut`."""
    if _chance(WORN, generator):
        return worn(probabilities, generator)
    return cut(probabilities, generator)


def worn(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Grow or shrink one object in probabilities [1 + O, H, W] by up to MOST_WORN pixels, unevenly
    over its sides, like the drift of propagated masks."""
    slot = 1 + int(float(torch.rand((), generator=generator)) * (len(probabilities) - 1))
    if not (probabilities[slot] > 0.5).any():
        return probabilities
    moved = drifted(probabilities[slot], MOST_WORN, generator)
    # The others are rescaled in proportion; if all are 0, the background gets the remainder.
    others = probabilities.clone()
    others[slot] = 0
    others[0] += LEAST
    others *= (1 - moved) / others.sum(dim=0)
    others[slot] = moved
    return others


def drifted(own: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Dilate or erode a soft mask [H, W] by 1 to `most` pixels, and shift it by up to as many."""
    draw = torch.rand(4, generator=generator).tolist()
    reach = 1 + int(draw[0] * most)
    sign = 1 if draw[1] < GROWN else -1
    moved = sign * functional.max_pool2d(sign * own[None], 2 * reach + 1, 1, reach)
    moved = functional.pad(moved, (reach,) * 4, mode="replicate")[0]
    top, left = (reach + round((2 * u - 1) * reach) for u in draw[2:])
    return moved[top : top + own.shape[0], left : left + own.shape[1]]


def cut(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """In a rectangle about a pixel of one object in probabilities [1 + O, H, W], move the object's
    probability to the background or (a leak) the reverse; the rectangle may cover the frame."""
    height, width = probabilities.shape[1:]
    draw = torch.rand(6, generator=generator).tolist()
    slot = 1 + int(draw[0] * (len(probabilities) - 1))
    pixels = (probabilities[slot] > 0.5).nonzero()
    if len(pixels) == 0:
        return probabilities
    y, x = pixels[int(draw[1] * len(pixels))].tolist()
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
    """Configuration for training on short clips: no top-k, and sharpness times SOFTER for "l2" and
    "dot". Parameters are unchanged."""
    changes: dict[str, Any] = {}
    if hasattr(config, "top_k"):
        changes["top_k"] = None
    if getattr(config, "similarity", "cosine") != "cosine":
        changes["sharpness"] = SOFTER * config.sharpness  # type: ignore[union-attr]
    return replace(config, **changes)
