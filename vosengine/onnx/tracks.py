"""How target_aware's graphs are driven: which proposal is which track, what is learnt and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnxruntime import OrtValue

from ..config import TargetAwareConfig
from ..policies.tracks import RULES, associate, births, lessons
from .discovery import Discovery, FrameProposals, boxes_of, nearest, run
from .manifest import Manifest
from .policies import Found, Marked, Policy
from .sessions import Sessions, Values
from .tracks_memory import Samples, draw_placements

CERTAIN = 10.0  # logit of a proposal's pixels where it takes the place of a tracked mask


@dataclass(frozen=True)
class Noted:
    """What `segment` noted of a frame: per track whether a proposal confirmed it, the maps
    [rows, D, h, w] of all, and D-Net's foreground."""

    verified: tuple[bool, ...]
    maps: OrtValue | None
    saliency: OrtValue


class TrackPolicy(Policy):
    """Discovers objects, follows each by what it looks like, and verifies that by proposals.

    Of the memory the layers of every track go into the graphs as they are; samples, embeddings and
    births are kept here, because what becomes of them is decided by numbers.
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
        self.noted: Noted | None = None

    # Segment

    def segment(self, seen: Sequence[Values], count: int) -> Found:
        (now,) = seen
        proposals, saliency = self.discovery.look(now["prepare.prepared"], self.geometry)
        scored = self._run("score", now, {"alive": self._alive(count)}) if count else None
        owners = np.zeros(self.geometry.network, np.uint8)
        if scored is not None:
            owners = scored["labels"].numpy()
        overlap = overlaps(owners, proposals.masks, count)
        compare = partial(self._compare, now, owners, proposals)
        matched, unseen = associate(self.rules, overlap, compare)
        apart = np.zeros((len(unseen), len(unseen)))  # D-Net's objects never overlap
        fresh = births(self.rules, proposals.scores[unseen], apart, self.capacity - count)
        born = [unseen[i] for i in fresh]
        maps = None if scored is None else scored["maps"]
        self.noted = Noted(tuple(p is not None for p in matched), maps, saliency)
        total = count + len(born)
        taken = [(row, p) for row, p in enumerate(matched) if p is not None]
        if self.settings["verified_mask"] == "own":
            taken = []
        if scored is not None and not (born or taken):
            return Found(scored["logits"], count, self.noted)
        rows = total if self.manifest.dynamic else max(self.rows, total)
        logits = np.zeros((rows, *self.geometry.network), np.float32)
        if scored is not None:
            logits[:count] = scored["logits"].numpy()[:count]
        for row, proposal in (*taken, *enumerate(born, start=count)):
            logits[row] = np.where(proposals.masks[proposal], CERTAIN, -CERTAIN)
        return Found(self.sessions.value(logits), total, self.noted)

    def _compare(
        self,
        now: Values,
        owners: np.ndarray,
        proposals: FrameProposals,
        tracks: np.ndarray,
        others: np.ndarray,
    ) -> np.ndarray:
        """Both cosines of these tracks and these proposals, [k, p]."""
        boxes = boxes_of(owners == (1 + tracks)[:, None, None])
        vectors = self._embed(now, np.concatenate((boxes, proposals.boxes[others])))
        ours, theirs = vectors[: len(tracks)], vectors[len(tracks) :]
        first = np.stack([self.tracks[track].embedding for track in tracks])
        found: np.ndarray = ours @ theirs.T + first @ theirs.T
        return found

    def pixels_under(
        self, found: Found | None, row: int, prompt: np.ndarray | None
    ) -> tuple[int, int]:
        if found is None or prompt is None:
            return 0, 0
        left, right, top, bottom = self.geometry.padding
        (height, width), frame = self.geometry.resized, self.geometry.frame
        given = prompt[nearest(frame[0], height)[:, None], nearest(frame[1], width)] > 0
        given = np.pad(given, ((top, bottom), (left, right)))
        mask = found.logits.numpy()[row] > 0
        return int((mask & given).sum()), int(mask.sum())

    # Remember

    def remember(self, seen: Sequence[Values], marked: Marked) -> None:
        (now,) = seen
        assert self.noted is not None
        owners = np.zeros(self.geometry.network, np.uint8)
        if marked.masks is not None:
            learnt = run(self.manifest, self.sessions, "learn", {"masks": marked.masks})
            owners = learnt["labels"].numpy()
            self._learn(marked, learnt, np.bincount(owners.ravel(), minlength=256)[1:])
            fresh = range(marked.before, marked.count)
            for slot in fresh:
                self._begin(slot, now, learnt["targets"].numpy()[slot])
            corrected = [slot for slot in range(marked.before) if marked.prompted[slot]]
            self._name(now, owners, [*corrected, *fresh])
        self._guide(now, owners)
        self.frame_index += 1

    def _learn(self, marked: Marked, learnt: Values, areas: np.ndarray) -> None:
        """Store the frame for every track that is in it, refit those whose turn it is."""
        if marked.before == 0:
            return
        assert self.noted is not None and self.noted.maps is not None
        maps, bands, aims = (
            value.numpy() for value in (self.noted.maps, learnt["bands"], learnt["aims"])
        )
        tracks, noted = self.tracks[: marked.before], self.noted.verified
        verified = [bool(marked.prompted[slot]) or sure for slot, sure in enumerate(noted)]
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
        given = {"features": features, "bands": bands, "targets": targets, "weight": weight}
        values = {name: value(array) for name, array in {**given, "kernel": kernel}.items()}
        fitted: np.ndarray = run(self.manifest, self.sessions, "fit", values)["kernel_out"].numpy()
        return fitted

    def _begin(self, slot: int, now: Values, target: np.ndarray) -> None:
        """Fit a new track to its first frame and to its augmentations, drawn by frame and slot."""
        value, settings = self.sessions.value, self.settings
        given = {"target": value(target)}
        if settings["augmentations"]:
            places, blurs = draw_placements(
                self.frame_index,
                slot,
                settings["augmentations"],
                settings["tracker_size"],
                settings["blur_radius"],
            )
            given |= {"placements": value(places), "blurs": value(blurs)}
        fitted = self._run("begin", now, given)
        for name in ("projection", "kernel"):
            layers = self.state[f"state.{name}"].numpy().copy()
            layers[slot] = fitted[name].numpy()
            self.state[f"state.{name}"] = value(layers)
        first = tuple(fitted[name].numpy() for name in ("features", "bands", "targets"))
        track = Samples(first, settings, self.rules, self.frame_index)
        self.tracks[slot:] = [track]

    def _name(self, now: Values, owners: np.ndarray, slots: list[int]) -> None:
        """What these tracks look like, from now on, at their best."""
        if slots:
            boxes = boxes_of(owners == (1 + np.array(slots))[:, None, None])
            for slot, vector in zip(slots, self._embed(now, boxes), strict=True):
                self.tracks[slot].embedding = vector

    def _guide(self, now: Values, owners: np.ndarray) -> None:
        """Tell D-Net's next frame what this one showed."""
        assert self.noted is not None
        saliency = self.noted.saliency
        if self.settings["guidance"] == "tracks":
            saliency = self.sessions.value((owners > 0)[None, None].astype(np.float32))
        self.discovery.guide(now["prepare.prepared"], saliency)

    def forget(self, slot: int, count: int) -> None:
        self.tracks[slot] = self.tracks[count - 1]
        self.tracks.pop()
        super().forget(slot, count)

    # What the graphs are given

    def _alive(self, count: int) -> OrtValue:
        return self.sessions.value(np.arange(self.rows) < count)

    def _run(self, verb: str, now: Values, given: Values) -> Values:
        """A graph on the frame's features, the memory, and what else is given by name."""
        values = {}
        for port in self.manifest.graphs[verb].inputs:
            table = given if port.name in given else (now if port.source in now else self.state)
            values[port.name] = table[port.name if table is given else port.source]
        return run(self.manifest, self.sessions, verb, values)

    def _embed(self, now: Values, boxes: np.ndarray) -> np.ndarray:
        """ReID vectors [N, E] of boxes [N, 4]; static graphs take a few at a time."""
        boxes = boxes.astype(np.float32)
        (port,) = (p for p in self.manifest.graphs["embed"].inputs if p.name == "boxes")
        each = port.shape[0] if isinstance(port.shape[0], int) else len(boxes)
        found = []
        for first in range(0, len(boxes), each):
            some = boxes[first : first + each]
            more = np.repeat(some[:1], each - len(some), axis=0)
            value = self.sessions.value(np.concatenate((some, more)))
            found.append(self._run("embed", now, {"boxes": value})["vectors"].numpy()[: len(some)])
        return np.concatenate(found)


def overlaps(owners: np.ndarray, masks: np.ndarray, count: int) -> np.ndarray:
    """Intersection over union of every track (1 + its slot in [H, W]) with every mask: float32
    [K, P]."""
    areas, *shared = (
        np.bincount(shown.ravel(), minlength=1 + count)[1 : 1 + count]
        for shown in (owners, *(owners[mask] for mask in masks))
    )
    both = np.array(shared).reshape(len(masks), count).T
    union = areas[:, None] + masks.sum(axis=(1, 2)) - both
    found: np.ndarray = both.astype(np.float32) / np.maximum(union, 1).astype(np.float32)
    return found
