"""DMN-AOA's memory, and the proposals that it matches: the caller's, or D-Net's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from onnxruntime import OrtValue

from ..errors import InputError
from ..types import Geometry, Size
from .discovery import Discovery, resize_masks
from .manifest import Axis, Manifest
from .policies import Found, Marked, Policy
from .sessions import Sessions, Values, lookup


@dataclass(frozen=True)
class FrameProposals:
    """P objects that a detector sees in one frame; they may overlap.

    boxes   [P, 4] float32: left, top, right, bottom in pixels, the last two exclusive
    masks   [P, H, W] bool, of the frame's size
    scores  [P] float32 in 0..1
    """

    boxes: np.ndarray
    masks: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)


class Seen(Protocol):
    """What a source answers: FrameProposals, or anything else with its arrays."""

    @property
    def boxes(self) -> np.ndarray: ...
    @property
    def masks(self) -> np.ndarray: ...
    @property
    def scores(self) -> np.ndarray: ...


Source = Callable[[np.ndarray, int], Seen]  # of a frame uint8 [H, W, 3] and its number


def check_proposals(given: Any, size: Size) -> FrameProposals:
    """Raise InputError unless these are proposals for a frame of that size.

    Boxes may reach beyond the frame; nothing is clipped.
    """
    names = ("boxes", "masks", "scores")
    for name in names:
        array = getattr(given, name, None)
        if array is None:
            raise InputError(
                f"proposals: wanted FrameProposals, given {type(given).__name__} without {name}"
            )
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise InputError(f"proposals: {name}: wanted a numpy array, given {kind}")
    found = FrameProposals(*(getattr(given, name) for name in names))
    count = found.masks.shape[0] if found.masks.ndim else 0
    wanted: dict[str, tuple[list[int], Any]] = {
        "boxes": ([count, 4], np.float32),
        "masks": ([count, *size], np.bool_),
        "scores": ([count], np.float32),
    }
    for name, (shape, dtype) in wanted.items():
        array = getattr(found, name)
        if list(array.shape) != shape:
            raise InputError(f"proposals: {name}: wanted {shape}, given {list(array.shape)}")
        if array.dtype != dtype:
            raise InputError(f"proposals: {name}: wanted {np.dtype(dtype)}, given {array.dtype}")
    _check_numbers(found)
    return found


def _check_numbers(given: FrameProposals) -> None:
    boxes, scores = given.boxes, given.scores
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    checks = (
        ("boxes: wanted finite numbers", boxes, np.isfinite(boxes).all(axis=1)),
        ("boxes: wanted left <= right and top <= bottom", boxes, ordered),
        ("scores: wanted finite numbers", scores, np.isfinite(scores)),
    )
    for what, array, good in checks:
        if not good.all():
            worst = int(np.flatnonzero(~good)[0])
            raise InputError(f"proposals: {what}, given {array[worst].tolist()} (number {worst})")


def to_network(given: FrameProposals, geometry: Geometry) -> FrameProposals:
    """Proposals for the caller's frame as proposals for the network's padded input."""
    left, right, top, bottom = geometry.padding
    (height, width), (new_height, new_width) = geometry.frame, geometry.resized
    scale = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    masks = resize_masks(given.masks, geometry.resized)
    return FrameProposals(
        given.boxes * scale + np.array([left, top] * 2, dtype=np.float32),
        np.pad(masks, ((0, 0), (top, bottom), (left, right))),
        given.scores,
    )


def clean(given: FrameProposals) -> FrameProposals:
    """The proposals that something can be matched with, each once: vosengine.proposals.clean, of
    which this is the same without torch."""
    usable, seen, kept = _usable(given), set[bytes](), []
    for number in np.argsort(-given.scores, kind="stable").tolist():
        mask = np.packbits(given.masks[number]).tobytes()
        if usable[number] and mask not in seen:
            seen.add(mask)
            kept.append(number)
    kept.sort()
    return FrameProposals(given.boxes[kept], given.masks[kept], given.scores[kept])


def _usable(given: FrameProposals) -> np.ndarray:
    """bool [P]: a mask that is not empty, and a box that has an area inside the frame."""
    height, width = given.masks.shape[1:]
    boxes = given.boxes.astype(np.float64)
    inside = _sides(np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height)))
    shown: np.ndarray = np.asarray(given.masks.any(axis=(1, 2)))
    return shown & (inside > 0).all(axis=1)


def best_of(given: FrameProposals, *, overlap: float, limit: int) -> FrameProposals:
    """The best proposals that do not say the same twice: non-maximum suppression of boxes by
    falling score, then the first `limit`.

    A box whose intersection over union with a better one that stays is above `overlap` goes; of
    equal scores the earlier is the better. Left out before all that are proposals with an empty
    mask, or with a box that has no area inside the frame.
    """
    order = np.argsort(-given.scores, kind="stable")
    boxes = given.boxes[order].astype(np.float64)
    alive = _usable(given)[order]
    areas = _sides(boxes[:, :2], boxes[:, 2:]).prod(axis=1)
    low = np.maximum(boxes[:, None, :2], boxes[:, :2])
    shared = _sides(low, np.minimum(boxes[:, None, 2:], boxes[:, 2:])).prod(axis=2)
    close = shared > overlap * (areas[:, None] + areas - shared)
    kept: list[int] = []
    for index in range(len(alive)):
        if len(kept) == limit:
            break
        if alive[index]:
            kept.append(index)
            alive &= ~close[index]
    chosen = order[kept]
    return FrameProposals(given.boxes[chosen], given.masks[chosen], given.scores[chosen])


def _sides(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    sides: np.ndarray = np.maximum(high - low, 0)
    return sides


class ProposalPolicy(Policy):
    """The memory of every object, and the frames that masks are refined with.

    A first frame is one row of `first_keys` and `first_features`, shared by the objects that began
    in it; `first` says whose is which. Of dynamic graphs there are as many rows as first frames.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        self.source: Source | None = None
        self.discovery = Discovery(manifest, sessions)
        super().__init__(manifest, sessions)

    def ask(self, source: Source) -> None:
        self.source = source

    def reset(self) -> None:
        super().reset()
        self.first: list[int] = []
        self.discovery.reset()
        self._asked: tuple[int, OrtValue | None] | None = None

    def _size(self, axis: Axis) -> int:
        if axis == "references":
            return 1
        return super()._size(axis)

    def encode(self, frame: np.ndarray, prepared: OrtValue) -> Values:
        """The features, and the proposals that are looked at, padded where graphs are static."""
        settings, value = self.manifest.settings, self.sessions.value
        given = check_proposals(self._seen(frame), self.geometry.frame)
        kept = best_of(
            clean(to_network(given, self.geometry)),
            overlap=settings["proposal_overlap"],
            limit=settings["max_proposals"],
        )
        rows = max(1, len(kept)) if self.manifest.dynamic else settings["max_proposals"]
        more = (0, rows - len(kept))
        return {
            **super().encode(frame, prepared),
            "caller.boxes": value(np.pad(kept.boxes, (more, (0, 0)))),
            "caller.masks": value(np.pad(kept.masks, (more, (0, 0), (0, 0)))),
            "caller.there": value(np.arange(rows) < len(kept)),
        }

    def _seen(self, frame: np.ndarray) -> Any:
        """The caller's proposals; or D-Net's, which is asked again where a step failed."""
        if self.source is not None:
            return self.source(frame, self.frame_index)
        if self._asked is not None and self._asked[0] == self.frame_index:
            self.discovery.guidance = self._asked[1]
        self._asked = self.frame_index, self.discovery.guidance
        return self.discovery(frame)

    def segment(self, seen: Sequence[Values], count: int) -> Found:
        value = self.sessions.value
        rows = np.array(self.first + [0] * (self.rows - count), dtype=np.int64)
        caller = {
            "caller.rows": value(rows),
            "caller.alive": value(np.arange(self.rows) < count),
            "caller.frame_index": value(np.array(self.frame_index)),
        }
        outputs = self.sessions("segment", lookup(self.named(seen), caller, self.state))
        return Found(outputs["logits"], count)

    def remember(self, seen: Sequence[Values], marked: Marked) -> None:
        super().remember(seen, marked)
        fresh = marked.count - len(self.first)
        if fresh > 0:
            row = 1 + max(self.first, default=-1)
            if self.manifest.dynamic:
                self.resize("references", row + 1)
            self._copy_row("previous", 0, row)
            self.first += [row] * fresh

    def _copy_row(self, of: str, row: int, into: int) -> None:
        """A row of the frame before or of the first frames as a row of the first frames."""
        for what in ("keys", "features"):
            name = f"state.first_{what}"
            rows = self.state[name].numpy().copy()
            rows[into] = self.state[f"state.{of}_{what}"].numpy()[row]
            self.state[name] = self.sessions.value(rows)

    def forget(self, slot: int, count: int) -> None:
        """Drop an object, and the frame that it began with if nobody else has it."""
        super().forget(slot, count)
        freed, end = self.first[slot], max(self.first)
        self.first[slot] = self.first[-1]
        self.first.pop()
        if freed not in self.first and freed != end:
            self._copy_row("first", end, freed)
            self.first = [freed if row == end else row for row in self.first]
        if self.manifest.dynamic:
            self.resize("references", 1 + max(self.first, default=0))
