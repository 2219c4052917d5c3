"""D-Net in onnxruntime: object proposals frame by frame.

    discovery = Discovery(manifest, sessions)       # of an export with `discover` and `guide`
    found = discovery(frame)                        # uint8 [H, W, 3]; as vosengine.DNetSource
    found.boxes, found.masks, found.scores          # numpy, in the frame's pixels
    discovery.reset()                               # the next frame is the first of a stream

Or in two steps, on a frame that is prepared already, in the network's pixels:

    found, saliency = discovery.look(prepared, geometry)
    discovery.guide(prepared, saliency)             # or any other foreground [1, 1, h, w]
"""

from __future__ import annotations

import numpy as np
from onnxruntime import OrtValue

from ..policies.proposals import ObjectsSeen
from ..types import Geometry, Size
from .manifest import Manifest
from .sessions import Sessions, Values, lookup


class FrameProposals(ObjectsSeen[np.ndarray]):
    """P objects that are seen in one frame, as ObjectsSeen, of numpy arrays."""


class Discovery:
    """The graphs `discover` and `guide`, and what a frame leaves for the next one.

    Where they are static, frames that do not fit what they take are stretched to it.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        settings = manifest.settings["discovery"]
        self.manifest, self.sessions = manifest, sessions
        self.smallest: int = settings["smallest"]
        self.channels: int = settings["channels"]
        self.multiple: int = settings["multiple"]
        ports = {port.name: port for port in manifest.graphs["discover"].inputs}
        height, width = ports["prepared"].shape[2:]
        self.size: Size | int | None = _size(settings["size"])
        self.fixed: Size | None = None
        if isinstance(height, int) and isinstance(width, int):
            self.fixed = height, width
        self._dtype = ports["guidance"].dtype
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self.guidance: OrtValue | None = None

    def __call__(self, frame: np.ndarray) -> FrameProposals:
        """Proposals for the next frame of a stream, uint8 [H, W, 3] RGB; guides the one after."""
        value = self.sessions.value
        geometry = self.geometry((frame.shape[0], frame.shape[1]))
        caller = {
            "caller.frame": value(frame),
            "caller.resized": value(np.array(geometry.resized)),
            "caller.padding": value(np.array(geometry.padding)),
        }
        prepared = self.sessions("prepare", lookup(caller))["prepared"]
        found, saliency = self.look(prepared, geometry)
        self.guide(prepared, saliency)
        left, _, top, _ = geometry.padding
        height, width = geometry.resized
        masks = found.masks[:, top : top + height, left : left + width]
        masks = resize_masks(masks, geometry.frame)
        return FrameProposals(boxes_of(masks), masks, found.scores)

    def geometry(self, size: Size) -> Geometry:
        """How a frame of that size lies in the network's input."""
        found = Geometry.fit(size, size=self.size, multiple=self.multiple)
        if self.fixed in (None, found.network):
            return found
        return Geometry.fit(size, size=self.fixed, multiple=self.multiple)

    def look(self, prepared: OrtValue, geometry: Geometry) -> tuple[FrameProposals, OrtValue]:
        """Proposals for a prepared frame, in the pixels of the network's padded input, by falling
        heat of the centre, none that overlap; and the probability of the foreground there, float32
        [1, 1, H / 4, W / 4]."""
        value = self.sessions.value
        cells = geometry.cells(self.multiple)
        known = self.guidance
        if known is not None and tuple(known.shape()[2:]) != cells:
            known = None
        nothing = np.zeros((1, self.channels, *cells), self._dtype)
        left, _, top, _ = geometry.padding
        outputs = run(
            self.manifest,
            self.sessions,
            "discover",
            {
                "prepared": prepared,
                "guidance": value(nothing) if known is None else known,
                "guided": value(np.array(known is not None)),
                "region": value(np.array((top, left, *geometry.resized))),
            },
        )
        areas = outputs["areas"].numpy()
        kept = 1 + np.flatnonzero(areas >= max(1, self.smallest))
        masks = outputs["labels"].numpy() == kept[:, None, None].astype(np.uint8)
        scores = outputs["scores"].numpy()[kept - 1]
        return FrameProposals(boxes_of(masks), masks, scores), outputs["saliency"]

    def guide(self, prepared: OrtValue, saliency: OrtValue) -> None:
        """Tell the next frame what this one showed, [1, 1, h, w] in 0..1."""
        given = {"prepared": prepared, "saliency": saliency}
        self.guidance = run(self.manifest, self.sessions, "guide", given)["guidance"]


def run(manifest: Manifest, sessions: Sessions, verb: str, given: Values) -> Values:
    """A graph on values by the names of its inputs."""
    sources = {port.source: given[port.name] for port in manifest.graphs[verb].inputs}
    return sessions(verb, lookup(sources))


def _size(given: int | list[int] | None) -> Size | int | None:
    """A size as JSON has it."""
    return (given[0], given[1]) if isinstance(given, (list, tuple)) else given


def resize_masks(masks: np.ndarray, size: Size) -> np.ndarray:
    """Masks [N, H, W] bool at another size, each pixel that of the nearest centre."""
    if masks.shape[1:] == size:
        return masks
    rows, columns = (
        nearest(there, wanted) for there, wanted in zip(masks.shape[1:], size, strict=True)
    )
    resized: np.ndarray = masks[:, rows[:, None], columns]
    return resized


def nearest(there: int, wanted: int) -> np.ndarray:
    """[wanted]: the pixel of `there` whose centre is nearest; float32 as torch counts."""
    places = np.arange(wanted, dtype=np.float32) + np.float32(0.5)
    found = np.floor(places * np.float32(there / wanted)).astype(np.int64)
    inside: np.ndarray = np.minimum(found, there - 1)
    return inside


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """The tightest boxes [N, 4] float32 (left, top, right, bottom; the last two exclusive) around
    masks [N, H, W] bool; zeros where a mask is empty."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
