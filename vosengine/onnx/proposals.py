"""Memory policy of DMN-AOA, and its proposals: the caller's or D-Net's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnxruntime import OrtValue

from ..policies.proposals import Candidates, check_arrays, check_numbers
from ..policies.references import FirstFrames
from ..types import Geometry, Size
from .discovery import Discovery, boxes_of, resize_masks
from .discovery import FrameProposals as FrameProposals
from .manifest import Manifest
from .policies import FrameMasks, Policy, SegmentOutput
from .sessions import Sessions, Values

Source = Callable[[np.ndarray, int], FrameProposals]  # (frame uint8 [H, W, 3], its index)


def check_proposals(proposals: object, size: Size) -> None:
    """Raise InputError unless these are proposals for a frame of that size."""
    check_arrays(proposals, size, FrameProposals, np.ndarray, "a numpy array")
    assert isinstance(proposals, FrameProposals)
    check_numbers(proposals.boxes, proposals.scores, proposals.scores)


def to_network(proposals: FrameProposals, geometry: Geometry) -> FrameProposals:
    """Map proposals from the caller's frame to the network's padded input."""
    left, right, top, bottom = geometry.padding
    (height, width), (new_height, new_width) = geometry.frame, geometry.resized
    scale = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    masks = resize_masks(proposals.masks, geometry.resized)
    return FrameProposals(
        proposals.boxes * scale + np.array([left, top] * 2, dtype=np.float32),
        np.pad(masks, ((0, 0), (top, bottom), (left, right))),
        proposals.scores,
    )


def chosen(proposals: FrameProposals, *, overlap: float, limit: int) -> FrameProposals:
    """Select the proposals to match: `clean`, then `best_of`, of vosengine.proposals."""
    masks = proposals.masks
    kept = _candidates(proposals).distinct(lambda i, j: np.array_equal(masks[i], masks[j]))
    proposals = proposals.chosen(kept)
    return proposals.chosen(_candidates(proposals).best(overlap, limit))


def _candidates(proposals: FrameProposals) -> Candidates:
    masks = proposals.masks
    tight, size = boxes_of(masks), (masks.shape[1], masks.shape[2])
    return Candidates(proposals.boxes, tight, proposals.scores, tight[:, 2] > 0, size)


class ProposalPolicy(Policy):
    """Policy of DMN-AOA: the memory of every object, and the reference frames for refinement.

    A first frame is one row of `first_keys` and `first_features`, shared by the objects that
    started in it; `first` maps objects to rows. With dynamic graphs there is one row per first
    frame.
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

    def encode(self, frame: np.ndarray, prepared: OrtValue) -> Values:
        """Return the features and the selected proposals, padded if the graphs are static."""
        settings, value = self.manifest.settings, self.sessions.value
        proposals = self._proposals(frame)
        check_proposals(proposals, self.geometry.frame)
        kept = chosen(
            to_network(proposals, self.geometry),
            overlap=settings["proposal_overlap"],
            limit=settings["max_proposals"],
        )
        rows = max(1, len(kept)) if self.manifest.dynamic else settings["max_proposals"]
        padding = (0, rows - len(kept))
        return {
            **super().encode(frame, prepared),
            "caller.boxes": value(np.pad(kept.boxes, (padding, (0, 0)))),
            "caller.masks": value(np.pad(kept.masks, (padding, (0, 0), (0, 0)))),
            "caller.there": value(np.arange(rows) < len(kept)),
        }

    def _proposals(self, frame: np.ndarray) -> FrameProposals:
        """The caller's proposals, or D-Net's; D-Net's guidance is restored if a step is retried."""
        if self.source is not None:
            return self.source(frame, self.frame_index)
        if self._asked is not None and self._asked[0] == self.frame_index:
            self.discovery.guidance = self._asked[1]
        self._asked = self.frame_index, self.discovery.guidance
        return self.discovery(frame)

    def segment(self, seen: Sequence[Values], count: int) -> SegmentOutput:
        value = self.sessions.value
        rows = np.array(self.first.rows + [0] * (self.rows - count), dtype=np.int64)
        caller = {
            "caller.rows": value(rows),
            "caller.alive": value(np.arange(self.rows) < count),
            "caller.frame_index": value(np.array(self.frame_index)),
        }
        outputs = self.sessions("segment", self.named(seen), caller, self.state)
        return SegmentOutput(outputs["logits"], count)

    def remember(self, seen: Sequence[Values], marked: FrameMasks) -> None:
        super().remember(seen, marked)
        row = self.first.begin(marked.count)
        if row is not None:
            if self.manifest.dynamic:
                self.resize("references", row + 1)
            self._copy_row("previous", 0, row)

    def _copy_row(self, of: str, row: int, into: int) -> None:
        """Copy a row of `previous` or `first` tensors to a row of the first frames."""
        for what in ("keys", "features"):
            name = f"state.first_{what}"
            rows = self.state[name].numpy().copy()
            rows[into] = self.state[f"state.{of}_{what}"].numpy()[row]
            self.state[name] = self.sessions.value(rows)

    def forget(self, slot: int, count: int) -> None:
        """Remove an object, and its first frame if no other object shares it."""
        super().forget(slot, count)
        moved = self.first.forget(slot)
        if moved is not None:
            self._copy_row("first", *moved)
        if self.manifest.dynamic:
            self.resize("references", max(1, self.first.end))
