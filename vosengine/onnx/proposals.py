"""DMN-AOA's memory, and the proposals that it matches: the caller's, or D-Net's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnxruntime import OrtValue

from ..policies.proposals import Candidates, check_arrays, check_numbers
from ..policies.references import FirstFrames
from ..types import Geometry, Size
from .discovery import Discovery, boxes_of, resize_masks
from .discovery import FrameProposals as FrameProposals
from .manifest import Axis, Manifest
from .policies import Found, Marked, Policy
from .sessions import Sessions, Values, lookup

Source = Callable[[np.ndarray, int], FrameProposals]  # of a frame uint8 [H, W, 3] and its number


def check_proposals(given: object, size: Size) -> None:
    """Raise InputError unless these are proposals for a frame of that size."""
    check_arrays(given, size, FrameProposals, np.ndarray, "a numpy array")
    assert isinstance(given, FrameProposals)
    check_numbers(given.boxes, given.scores, given.scores)


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


def chosen(given: FrameProposals, *, overlap: float, limit: int) -> FrameProposals:
    """Those that are looked at: `clean` and then `best_of` of vosengine.proposals."""
    masks = given.masks
    kept = _candidates(given).distinct(lambda i, j: np.array_equal(masks[i], masks[j]))
    given = given.chosen(kept)
    return given.chosen(_candidates(given).best(overlap, limit))


def _candidates(given: FrameProposals) -> Candidates:
    tight, size = boxes_of(given.masks), (given.masks.shape[1], given.masks.shape[2])
    return Candidates(given.boxes, tight, given.scores, tight[:, 2] > 0, size)


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
        self.first = FirstFrames(0)
        self.discovery.reset()
        self._asked: tuple[int, OrtValue | None] | None = None

    def _size(self, axis: Axis) -> int:
        if axis == "references":
            return 1
        return super()._size(axis)

    def encode(self, frame: np.ndarray, prepared: OrtValue) -> Values:
        """The features, and the proposals that are looked at, padded where graphs are static."""
        settings, value = self.manifest.settings, self.sessions.value
        given = self._seen(frame)
        check_proposals(given, self.geometry.frame)
        kept = chosen(
            to_network(given, self.geometry),
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

    def _seen(self, frame: np.ndarray) -> FrameProposals:
        """The caller's proposals; or D-Net's, which is asked again where a step failed."""
        if self.source is not None:
            return self.source(frame, self.frame_index)
        if self._asked is not None and self._asked[0] == self.frame_index:
            self.discovery.guidance = self._asked[1]
        self._asked = self.frame_index, self.discovery.guidance
        return self.discovery(frame)

    def segment(self, seen: Sequence[Values], count: int) -> Found:
        value = self.sessions.value
        rows = np.array(self.first.rows + [0] * (self.rows - count), dtype=np.int64)
        caller = {
            "caller.rows": value(rows),
            "caller.alive": value(np.arange(self.rows) < count),
            "caller.frame_index": value(np.array(self.frame_index)),
        }
        outputs = self.sessions("segment", lookup(self.named(seen), caller, self.state))
        return Found(outputs["logits"], count)

    def remember(self, seen: Sequence[Values], marked: Marked) -> None:
        super().remember(seen, marked)
        row = self.first.begin(marked.count)
        if row is not None:
            if self.manifest.dynamic:
                self.resize("references", row + 1)
            self._copy_row("previous", 0, row)

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
        moved = self.first.forget(slot)
        if moved is not None:
            self._copy_row("first", *moved)
        if self.manifest.dynamic:
            self.resize("references", max(1, self.first.end))
