"""Policy of target_aware: matching proposals to tracks, and the online learning of tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnxruntime import OrtValue

from ..config import TargetAwareConfig
from ..policies.tracks import RULES, associate, births, lessons
from .discovery import Discovery, FrameProposals, boxes_of, nearest
from .manifest import Manifest
from .policies import FrameMasks, Policy, SegmentOutput
from .sessions import Sessions, Values
from .tracks_memory import Samples, draw_placements

CERTAIN = 10.0  # logit of a proposal's pixels when it replaces a tracked mask


@dataclass(frozen=True)
class TrackAux:
    """What `segment` passes on to `remember`.

    verified  per track, whether a proposal confirmed it
    maps      [rows, D, h, w]; None without tracks
    saliency  D-Net's foreground
    """

    verified: tuple[bool, ...]
    maps: OrtValue | None
    saliency: OrtValue


class TrackPolicy(Policy):
    """Policy of target_aware: discovers objects, tracks them, and verifies tracks by proposals.

    The layers of the tracks are memory tensors of the graphs. Samples, embeddings and births are
    kept here, since decisions between the graphs depend on them.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        self.settings: dict[str, Any] = manifest.settings
        self.discovery = Discovery(manifest, sessions)
        self.rules = TargetAwareConfig(**{name: self.settings[name] for name in RULES})
        self.capacity = min(manifest.max_objects, self.settings["max_tracks"])
        super().__init__(manifest, sessions)

    def reset(self) -> None:
        super().reset()
        self.discovery.reset()
        self.tracks: list[Samples] = []

    # Segment

    def segment(self, seen: Sequence[Values], count: int) -> SegmentOutput:
        (now,) = seen
        proposals, saliency = self.discovery.look(now["prepare.prepared"], self.geometry)
        scored, maps, owners = None, None, np.zeros(self.geometry.network, np.uint8)
        if count:
            alive = {"alive": self.sessions.value(np.arange(self.rows) < count)}
            scored = self.sessions("score", alive, now, self.state)
            maps, owners = scored["maps"], scored["labels"].numpy()
        overlap = overlaps(owners, proposals.masks, count)
        compare = partial(self._compare, now, owners, proposals)
        matched, unseen = associate(self.rules, overlap, compare)
        apart = np.zeros((len(unseen), len(unseen)))  # D-Net's objects never overlap
        fresh = births(self.rules, proposals.scores[unseen], apart, self.capacity - count)
        new = [unseen[i] for i in fresh]
        aux = TrackAux(tuple(p is not None for p in matched), maps, saliency)
        total = count + len(new)
        replaced = [(row, p) for row, p in enumerate(matched) if p is not None]
        if self.settings["verified_mask"] == "own":
            replaced = []
        if scored is not None and not (new or replaced):
            return SegmentOutput(scored["logits"], count, aux)
        rows = total if self.manifest.dynamic else max(self.rows, total)
        logits = np.zeros((rows, *self.geometry.network), np.float32)
        if scored is not None:
            logits[:count] = scored["logits"].numpy()[:count]
        for row, proposal in (*replaced, *enumerate(new, start=count)):
            logits[row] = np.where(proposals.masks[proposal], CERTAIN, -CERTAIN)
        return SegmentOutput(self.sessions.value(logits), total, aux)

    def _compare(
        self,
        now: Values,
        owners: np.ndarray,
        proposals: FrameProposals,
        tracks: np.ndarray,
        others: np.ndarray,
    ) -> np.ndarray:
        """Sum of two cosines, [k, p]: of the proposals' embeddings with the tracks' current and
        stored ones."""
        boxes = boxes_of(owners == (1 + tracks)[:, None, None])
        vectors = self._embed(now, np.concatenate((boxes, proposals.boxes[others])))
        ours, theirs = vectors[: len(tracks)], vectors[len(tracks) :]
        first = np.stack([self.tracks[track].embedding for track in tracks])
        similarity: np.ndarray = ours @ theirs.T + first @ theirs.T
        return similarity

    def pixels_under(
        self, segmented: SegmentOutput | None, row: int, prompt: np.ndarray | None
    ) -> tuple[int, int]:
        if segmented is None or prompt is None:
            return 0, 0
        left, right, top, bottom = self.geometry.padding
        (height, width), frame = self.geometry.resized, self.geometry.frame
        prompted = prompt[nearest(frame[0], height)[:, None], nearest(frame[1], width)] > 0
        prompted = np.pad(prompted, ((top, bottom), (left, right)))
        mask = segmented.logits.numpy()[row] > 0
        return int((mask & prompted).sum()), int(mask.sum())

    # Remember

    def remember(self, seen: Sequence[Values], marked: FrameMasks) -> None:
        (now,) = seen
        owners = np.zeros(self.geometry.network, np.uint8)
        if marked.masks is not None:
            learnt = self.sessions("learn", {"masks": marked.masks})
            owners = learnt["labels"].numpy()
            self._learn(marked, learnt, np.bincount(owners.ravel(), minlength=256)[1:])
            fresh = range(marked.before, marked.count)
            for slot in fresh:
                self._begin(slot, now, learnt["targets"].numpy()[slot])
            corrected = [slot for slot in range(marked.before) if marked.prompted[slot]]
            self._set_embeddings(now, owners, [*corrected, *fresh])
        saliency = marked.aux.saliency
        if self.settings["guidance"] == "tracks":
            saliency = self.sessions.value((owners > 0)[None, None].astype(np.float32))
        self.discovery.guide(saliency)
        self.frame_index += 1

    def _learn(self, marked: FrameMasks, learnt: Values, areas: np.ndarray) -> None:
        """Store the frame as a sample of every visible track, and refit the tracks that are due."""
        if marked.before == 0:
            return
        aux: TrackAux = marked.aux
        assert aux.maps is not None
        maps, bands, aims = (x.numpy() for x in (aux.maps, learnt["bands"], learnt["aims"]))
        tracks, confirmed = self.tracks[: marked.before], aux.verified
        verified = [bool(marked.prompted[slot]) or seen for slot, seen in enumerate(confirmed)]
        ages = [self.frame_index - track.born for track in tracks]
        taught = lessons(self.rules, areas.tolist(), verified, ages)
        for slot, sure, _ in taught:
            tracks[slot].push((maps[slot], bands[slot], aims[slot]), verified=sure)
        due = [lesson.slot for lesson in taught if lesson.due]
        if not due:
            return
        kernels = self.state["state.kernel"].numpy().copy()
        for slot in due:
            kernels[slot] = self._fitted(self.tracks[slot], kernels[slot])
        self.state["state.kernel"] = self.sessions.value(kernels)

    def _fitted(self, track: Samples, kernel: np.ndarray) -> np.ndarray:
        value = self.sessions.value
        features, bands, targets, weight = track.read(whole=not self.manifest.dynamic)
        samples = {"features": features, "bands": bands, "targets": targets, "weight": weight}
        values = {name: value(array) for name, array in {**samples, "kernel": kernel}.items()}
        fitted: np.ndarray = self.sessions("fit", values)["kernel_out"].numpy()
        return fitted

    def _begin(self, slot: int, now: Values, target: np.ndarray) -> None:
        """Fit a new track to its first frame and its augmentations, seeded by frame and slot."""
        value, settings = self.sessions.value, self.settings
        inputs = {"target": value(target)}
        if settings["augmentations"]:
            places, blurs = draw_placements(
                self.frame_index,
                slot,
                settings["augmentations"],
                settings["tracker_size"],
                settings["blur_radius"],
            )
            inputs |= {"placements": value(places), "blurs": value(blurs)}
        fitted = self.sessions("begin", inputs, now)
        for name in ("projection", "kernel"):
            layers = self.state[f"state.{name}"].numpy().copy()
            layers[slot] = fitted[name].numpy()
            self.state[f"state.{name}"] = value(layers)
        first = tuple(fitted[name].numpy() for name in ("features", "bands", "targets"))
        track = Samples(first, settings, self.rules, self.frame_index)
        self.tracks[slot:] = [track]

    def _set_embeddings(self, now: Values, owners: np.ndarray, slots: list[int]) -> None:
        """Replace the stored embeddings of these tracks by those of the current frame."""
        if slots:
            boxes = boxes_of(owners == (1 + np.array(slots))[:, None, None])
            for slot, vector in zip(slots, self._embed(now, boxes), strict=True):
                self.tracks[slot].embedding = vector

    def forget(self, slot: int, count: int) -> None:
        self.tracks[slot] = self.tracks[count - 1]
        self.tracks.pop()
        super().forget(slot, count)

    def _embed(self, now: Values, boxes: np.ndarray) -> np.ndarray:
        """ReID vectors [N, E] of boxes [N, 4]; static graphs take a fixed number per run."""
        boxes = boxes.astype(np.float32)
        (port,) = (p for p in self.manifest.graphs["embed"].inputs if p.name == "boxes")
        size = port.shape[0] if isinstance(port.shape[0], int) else len(boxes)
        vectors = []
        for first in range(0, len(boxes), size):
            part = boxes[first : first + size]
            padding = np.repeat(part[:1], size - len(part), axis=0)
            value = self.sessions.value(np.concatenate((part, padding)))
            outputs = self.sessions("embed", {"boxes": value}, now)
            vectors.append(outputs["vectors"].numpy()[: len(part)])
        return np.concatenate(vectors)


def overlaps(owners: np.ndarray, masks: np.ndarray, count: int) -> np.ndarray:
    """Intersection over union of every track with every mask, float32 [K, P].

    owners  [H, W] 1 + slot of the track, or 0
    masks   [P, H, W] bool
    """
    areas, *shared = (
        np.bincount(shown.ravel(), minlength=1 + count)[1 : 1 + count]
        for shown in (owners, *(owners[mask] for mask in masks))
    )
    both = np.array(shared).reshape(len(masks), count).T
    union = areas[:, None] + masks.sum(axis=(1, 2)) - both
    iou: np.ndarray = both.astype(np.float32) / np.maximum(union, 1).astype(np.float32)
    return iou
