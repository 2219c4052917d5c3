"""Training objective of T-Net: appearance models fitted on a first frame, scored on later ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.nn import functional

from ...models.method import rows_of
from ...models.target_aware.appearance import Tracks
from ...models.target_aware.network import TargetAware, TargetAwareFeatures
from ..losses import binary, soft_iou
from .following import drifted
from .objective import Clips, iou_of_each, nothing_for, one_hot


class Followed(NamedTuple):
    """Tracks of one clip."""

    first: TargetAwareFeatures  # of the first frame, B = 1
    later: list[TargetAwareFeatures]
    labels: torch.Tensor  # [1 + later, K, S, S] in 0..1, the first frame first


@dataclass(frozen=True)
class Appearance:
    """BCE + IoU of the refined scores on later frames.

    The fit has no gradient; gradients reach the refiner, and the backbone through its features of
    the later frames. (ours) Models are fitted to the first frame without augmentations, each of
    which would cost a backbone pass.

    later   number of later frames per clip
    tracks  maximum number of objects per clip, of those in its first frame
    rough   maximum drift, in pixels of T-Net's input, of the outlines that models are fitted to;
            0: none. (ours) It imitates the outlines of discovered objects, for the refiner
    """

    later: int = 1
    tracks: int = 2
    rough: int = 0

    def losses(
        self, method: TargetAware, clips: Clips, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Mean losses of the later frames, by name; 0 without tracks."""
        pixels, overlaps = [], []
        for clip in self._followed(method, clips, generator):
            if self.rough:
                clip = clip._replace(labels=self._roughened(clip.labels, generator))
            for logits, target in _follow(method, clip):
                pixels.append(binary(logits, target).mean())
                overlaps.append(soft_iou(torch.sigmoid(logits), target))
        if not pixels:
            nothing = nothing_for(method.backbone) + nothing_for(method.refiner)
            return {"track": nothing, "track_iou": nothing}
        return {"track": torch.stack(pixels).mean(), "track_iou": torch.stack(overlaps).mean()}

    def _roughened(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Labels [1 + later, K, S, S] with drifted outlines in the first frame."""
        first = [drifted(label, self.rough, generator) for label in labels[0]]
        return torch.cat((torch.stack(first)[None], labels[1:]))

    def score(self, method: TargetAware, clips: Clips) -> float:
        """Mean IoU over tracks and all frames after the first, at T-Net's size, each track
        separately; 1 without tracks."""
        everything = Appearance(later=clips.masks.shape[1], tracks=clips.objects)
        ious: list[float] = []
        for clip in everything._followed(method, clips, torch.Generator().manual_seed(0)):
            for logits, target in _follow(method, clip):
                ious += iou_of_each(logits > 0, target > 0.5).tolist()
        return sum(ious) / len(ious) if ious else 1.0

    def _followed(
        self, method: TargetAware, clips: Clips, generator: torch.Generator
    ) -> Iterator[Followed]:
        """Iterate over clips with an object in the first frame; all are encoded as one batch."""
        frames, masks, objects = clips
        number, length = masks.shape[:2]
        count = 1 + min(self.later, length - 1)
        order = 1 + torch.rand(number, length - 1, generator=generator).argsort(dim=1)
        indices = torch.cat((torch.zeros(number, 1, dtype=torch.int64), order), dim=1)[:, :count]
        rows = torch.arange(number)[:, None]
        # With proposals given (none), D-Net does not run.
        encoded = method.encode(frames[rows, indices].flatten(0, 1), ())
        labels = one_hot(masks[rows, indices], objects)[:, :, 1:].flatten(0, 1)
        square = (method.config.tracker_size,) * 2
        if objects:
            labels = functional.interpolate(labels, square, mode="bilinear", align_corners=False)
        areas = labels[::count].sum(dim=(2, 3)).tolist()
        for clip, area in enumerate(areas):
            visible = [i for i, a in enumerate(area) if a >= method.config.smallest_sample]
            chosen = torch.randperm(len(visible), generator=generator)[: self.tracks].tolist()
            start = clip * count
            if visible and count > 1:
                stop = start + count
                first, *later = (rows_of(encoded, slice(i, i + 1)) for i in range(start, stop))
                slots = [visible[i] for i in chosen]
                yield Followed(first, later, labels[start:stop, slots])


def fit(method: TargetAware, features: TargetAwareFeatures, labels: torch.Tensor) -> Tracks:
    """Fit appearance models to the objects of a frame, labels [K, S, S] in 0..1; no gradient."""
    config = replace(method.config, samples=1, augmentations=0)
    maps = features.appearance.detach().float()
    channels, height, width = maps.shape[1:]
    tracks = Tracks(config, len(labels), channels, (height, width), maps)
    with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
        for slot, label in enumerate(labels):
            tracks.begin(slot, maps, label[None])
    return tracks


def _follow(method: TargetAware, clip: Followed) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Iterate over the later frames: refined logits and labels of all tracks, both [K, S, S]."""
    tracks = fit(method, clip.first, clip.labels[0])
    square = (method.config.tracker_size,) * 2
    for features, target in zip(clip.later, clip.labels[1:], strict=True):
        with torch.autocast(target.device.type, enabled=False):
            coarse = tracks.scores(tracks.project(features.appearance))
        yield method.refiner(coarse, list(features.reduced), square).float(), target
