"""Memory policies: what a program does between the graphs of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnxruntime import OrtValue

from ..errors import ConfigError
from ..types import Geometry
from .manifest import Axis, Manifest
from .sessions import Sessions, Values


@dataclass(frozen=True)
class SegmentOutput:
    """The result of `segment` for a frame.

    logits  [rows, h, w] float32
    count   number of valid rows: the objects alive, then the discovered ones
    aux     passed on to `remember`
    """

    logits: OrtValue
    count: int
    aux: Any = None


@dataclass(frozen=True)
class FrameMasks:
    """The masks of a frame as `remember` takes them.

    masks     [1 + rows, H, W] float32, padded; None without objects
    prompted  bool [rows], whether the caller's prompt shows the object
    before    number of objects before this frame, the first rows
    count     number of objects after this frame
    aux       from `segment`
    """

    masks: OrtValue | None
    prompted: np.ndarray
    before: int
    count: int
    aux: Any = None


class Policy:
    """Base policy: every memory tensor is an input and output of the graphs and is passed on.

    With dynamic graphs the memory has one row per object and one entry per frame in use. With
    static graphs both sizes are fixed, and rows without an object are not alive.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        self.manifest = manifest
        self.sessions = sessions
        self.reset()

    def reset(self) -> None:
        """Discard the state; the next frame is the first of a stream."""
        self.rows = 0
        self.state: Values = {}
        self.frame_index = 0

    def ask(self, source: Callable[[np.ndarray, int], Any]) -> None:
        """Set the source of proposals. Raises ConfigError if the model takes none."""
        raise ConfigError(
            f"proposals: an export of {self.manifest.model} takes none; leave them out"
        )

    def start(self, geometry: Geometry) -> None:
        """Create the state before the first frame of a stream."""
        self.geometry = geometry
        self.free: dict[str, int] = {"objects": 0, "frames": 1, "references": 1}
        if not self.manifest.dynamic:
            self.free["objects"] = self.rows = self.manifest.objects
        for port in self.manifest.state:
            shape = [self._size(axis) for axis in port.shape]
            self.state[f"state.{port.name}"] = self.sessions.value(np.zeros(shape, port.dtype))

    def _size(self, axis: Axis) -> int:
        """The current size of an axis: "2*h" from the geometry, "objects" from `free`."""
        if isinstance(axis, int):
            return axis
        factor, _, name = axis.rpartition("*")
        if name in ("h", "w"):
            cells = self.geometry.cells(self.manifest.multiple)
            return int(factor or 1) * cells[name == "w"]
        return self.free[name]

    def resize(self, axis: str, size: int) -> None:
        """Resize an axis in every memory tensor: truncate, or append zeros."""
        self.free[axis] = size
        for port in self.manifest.state:
            if axis in port.axes:
                name = f"state.{port.name}"
                self.state[name] = self.sessions.value(
                    _resized(self.state[name].numpy(), port.axes.index(axis), size)
                )

    def make_rows(self, count: int) -> None:
        """Resize the memory to that many objects, if the graphs are dynamic."""
        if self.manifest.dynamic and count != self.rows:
            self.resize("objects", count)
            self.rows = count

    def encode(self, frame: np.ndarray, prepared: OrtValue) -> Values:
        """Return the prepared frame and its features, by source name."""
        inputs = {"prepare.prepared": prepared}
        outputs = self.sessions("encode", inputs)
        return {**inputs, **{f"encode.{name}": value for name, value in outputs.items()}}

    def segment(self, seen: Sequence[Values], count: int) -> SegmentOutput:
        """Return the logits of the current frame; `seen` holds the features of frames `sees`."""
        outputs = self.sessions("segment", self.named(seen), self.state)
        rows = count if self.manifest.needs_mask else self.manifest.max_objects
        return SegmentOutput(outputs["logits"], rows)

    def pixels_under(
        self, segmented: SegmentOutput | None, row: int, prompt: np.ndarray | None
    ) -> tuple[int, int]:
        """Pixels of a discovered object inside the prompt, and its total: (0, 0) for models whose
        objects are not both discovered and prompted."""
        return 0, 0

    def named(self, seen: Sequence[Values]) -> Values:
        """The features of several frames by source name; other frames than the current one have
        the suffix "@" and their offset."""
        values: Values = {}
        for offset, features in zip(self.manifest.sees, seen, strict=True):
            suffix = f"@{offset:+d}" if offset else ""
            values.update({name + suffix: value for name, value in features.items()})
        return values

    def remember(self, seen: Sequence[Values], marked: FrameMasks) -> None:
        """Update the memory from the masks of a frame. Nothing else writes the memory."""
        if "remember" in self.manifest.graphs and marked.count:
            self._grow()
            outputs = self.sessions("remember", self.caller(marked), self.named(seen), self.state)
            for port in self.manifest.graphs["remember"].outputs:
                if port.source:
                    self.state[port.source] = outputs[port.name]
        self.frame_index += 1

    def caller(self, marked: FrameMasks) -> Values:
        """The inputs of `remember` that come from the calling program, by source name."""
        assert marked.masks is not None
        value = self.sessions.value
        return {
            "finish.masks": marked.masks,
            "caller.alive": value(np.arange(self.rows) < marked.before),
            "caller.prompted": value(marked.prompted),
            "caller.frame_index": value(np.array(self.frame_index)),
        }

    def _grow(self) -> None:
        """Make room in the memory for the next frame, if the graphs are dynamic."""
        if self.manifest.dynamic and "state.cursor" in self.state:
            needed = int(self.state["state.cursor"].numpy().max(initial=0)) + 1
            if needed > self.free["frames"]:
                self.resize("frames", needed)

    def forget(self, slot: int, count: int) -> None:
        """Remove an object; the last of the `count` objects moves to its row."""
        last = count - 1
        for port in self.manifest.state:
            if "objects" in port.axes:
                name, axis = f"state.{port.name}", port.axes.index("objects")
                rows = np.moveaxis(self.state[name].numpy().copy(), axis, 0)
                rows[slot] = rows[last]
                rows[last] = 0
                self.state[name] = self.sessions.value(np.moveaxis(rows, 0, axis))
        self.make_rows(last)


def _resized(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    kept = array.take(range(min(size, array.shape[axis])), axis)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, size - kept.shape[axis])
    return np.pad(kept, padding)
