"""D-Net in onnxruntime: object proposals per frame.

    discovery = Discovery(manifest, sessions)       # of an export with `discover` and `guide`
    proposals = discovery(frame)                    # uint8 [H, W, 3]; as vosengine.DNetSource
    proposals.boxes, proposals.masks, proposals.scores  # numpy, in the frame's pixels
    discovery.reset()                               # the next frame is the first of a stream

Or in two steps, for a prepared frame, in the network's pixels:

    proposals, saliency = discovery.look(prepared, geometry)
    discovery.guide(saliency)                       # or any other foreground [1, 1, h, w]
"""

from __future__ import annotations

import numpy as np
from onnxruntime import OrtValue

from ..policies.proposals import ObjectsSeen
from ..types import Geometry, Size
from .manifest import Manifest
from .sessions import Sessions, Values


class FrameProposals(ObjectsSeen[np.ndarray]):
    """Proposals of one frame as numpy arrays; fields as in ObjectsSeen."""


class Discovery:
    """Runs the graphs `discover` and `guide` and keeps the guidance for the next frame.

    If the graphs are static, frames of another size are stretched to their size.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        settings = manifest.settings["discovery"]
        self.sessions = sessions
        self.smallest: int = settings["smallest"]
        self.channels: int = settings["channels"]
        self.multiple: int = settings["multiple"]
        ports = {port.name: port for port in manifest.graphs["discover"].inputs}
        height, width = ports["prepared"].shape[2:]
        size = settings["size"]  # in JSON a pair is a list
        self.size: Size | int | None = tuple(size) if isinstance(size, list) else size
        self.fixed: Size | None = None
        if isinstance(height, int) and isinstance(width, int):
            self.fixed = height, width
        self._dtype = ports["guidance"].dtype
        self.reset()

    def reset(self) -> None:
        """Discard the state; the next frame is the first of a stream."""
        self.guidance: OrtValue | None = None
        self._frame: Values = {}  # the frame that was looked at last, and the outputs of `discover`

    def __call__(self, frame: np.ndarray) -> FrameProposals:
        """Return proposals for the next frame, uint8 [H, W, 3] RGB, and update the guidance."""
        geometry = self.geometry((frame.shape[0], frame.shape[1]))
        proposals, saliency = self.look(self.sessions.prepared(frame, geometry), geometry)
        self.guide(saliency)
        left, _, top, _ = geometry.padding
        height, width = geometry.resized
        masks = proposals.masks[:, top : top + height, left : left + width]
        masks = resize_masks(masks, geometry.frame)
        return FrameProposals(boxes_of(masks), masks, proposals.scores)

    def geometry(self, size: Size) -> Geometry:
        """The mapping of a frame of that size to the network's input."""
        geometry = Geometry.fit(size, size=self.size, multiple=self.multiple)
        if self.fixed in (None, geometry.network):
            return geometry
        return Geometry.fit(size, size=self.fixed, multiple=self.multiple)

    def look(self, prepared: OrtValue, geometry: Geometry) -> tuple[FrameProposals, OrtValue]:
        """Return proposals for a prepared frame and its saliency.

        Proposals are in pixels of the network's padded input, do not overlap, and are sorted by
        descending heat of the centre. The saliency is the foreground's probability, float32
        [1, 1, H / 4, W / 4].
        """
        value = self.sessions.value
        cells = geometry.cells(self.multiple)
        guidance = self.guidance
        if guidance is not None and tuple(guidance.shape()[2:]) != cells:
            guidance = None
        zeros = np.zeros((1, self.channels, *cells), self._dtype)
        left, _, top, _ = geometry.padding
        inputs = {
            "prepared": prepared,
            "guidance": value(zeros) if guidance is None else guidance,
            "guided": value(np.array(guidance is not None)),
            "region": value(np.array((top, left, *geometry.resized))),
        }
        outputs = self.sessions("discover", inputs)
        areas = outputs["areas"].numpy()
        self._frame = {"prepared": prepared, **outputs}
        kept = 1 + np.flatnonzero(areas >= max(1, self.smallest))
        masks = outputs["labels"].numpy() == kept[:, None, None].astype(np.uint8)
        scores = outputs["scores"].numpy()[kept - 1]
        return FrameProposals(boxes_of(masks), masks, scores), outputs["saliency"]

    def guide(self, saliency: OrtValue) -> None:
        """Compute the next frame's guidance from the foreground, [1, 1, h, w], 0 to 1, of the frame
        that was looked at last."""
        outputs = self.sessions("guide", {"saliency": saliency}, self._frame)
        self.guidance = outputs["guidance"]


def resize_masks(masks: np.ndarray, size: Size) -> np.ndarray:
    """Resize masks [N, H, W] bool by nearest neighbour (pixel centres)."""
    if masks.shape[1:] == size:
        return masks
    rows, columns = (nearest(old, new) for old, new in zip(masks.shape[1:], size, strict=True))
    resized: np.ndarray = masks[:, rows[:, None], columns]
    return resized


def nearest(old: int, new: int) -> np.ndarray:
    """Source index [new] int64 of nearest-neighbour resizing, computed in float32 as in torch."""
    centres = np.arange(new, dtype=np.float32) + np.float32(0.5)
    index = np.floor(centres * np.float32(old / new)).astype(np.int64)
    inside: np.ndarray = np.minimum(index, old - 1)
    return inside


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Bounding boxes [N, 4] float32 (left, top, right, bottom; the last two exclusive) of masks
    [N, H, W] bool; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
