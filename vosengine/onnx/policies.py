"""How a memory is driven: what a program does between the graphs of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from onnxruntime import OrtValue

from ..errors import ConfigError
from ..types import Geometry
from .manifest import Axis, Manifest
from .sessions import Sessions, Values, lookup


@dataclass(frozen=True)
class Found:
    """What `segment` says of a frame.

    logits  [rows, h, w] float32
    count   the first rows that mean something: those of the objects alive, then of discovered ones
    """

    logits: OrtValue
    count: int
    aux: Any = None


@dataclass(frozen=True)
class Marked:
    """The masks of a frame as `remember` takes them.

    masks     [1 + rows, H, W] float32, padded; None without objects
    prompted  bool [rows], shown in it by the caller
    count     objects after this frame; `before`, before it: the first rows
    """

    masks: OrtValue | None
    prompted: np.ndarray
    before: int
    count: int
    aux: Any = None


class Policy:
    """Every tensor of the memory is in and out of the graphs: nothing to do but to pass it on.

    Of dynamic graphs the memory has as many rows as there are objects, and as many frames as are
    in use; of static ones both are fixed, and rows without an object are not alive.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        self.manifest = manifest
        self.sessions = sessions
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self.rows = 0
        self.state: Values = {}
        self.frame_index = 0

    def ask(self, source: Callable[[np.ndarray, int], Any]) -> None:
        """Take proposals from there. Raises ConfigError where the model takes none."""
        raise ConfigError(
            f"proposals: an export of {self.manifest.model} takes none; leave them out"
        )

    def start(self, geometry: Geometry) -> None:
        """Before the first frame of a stream."""
        self.geometry = geometry
        self.free: dict[str, int] = {"objects": 0, "frames": 1}
        if not self.manifest.dynamic:
            self.free["objects"] = self.rows = self.manifest.objects
        for port in self.manifest.state:
            shape = [self._size(axis) for axis in port.shape]
            self.state[f"state.{port.name}"] = self.sessions.value(np.zeros(shape, port.dtype))

    def _size(self, axis: Axis) -> int:
        """What an axis measures in this stream: "2*h" by the geometry, "objects" as it is now."""
        if isinstance(axis, int):
            return axis
        factor, _, name = axis.rpartition("*")
        if name in ("h", "w"):
            cells = self.geometry.cells(self.manifest.multiple)
            return int(factor or 1) * cells[name == "w"]
        return self.free[name]

    def resize(self, axis: str, size: int) -> None:
        """Give every tensor of the memory that many along an axis: zeros where it had fewer."""
        self.free[axis] = size
        for port in self.manifest.state:
            if axis in port.axes:
                name = f"state.{port.name}"
                self.state[name] = self.sessions.value(
                    _resized(self.state[name].numpy(), port.axes.index(axis), size)
                )

    def make_rows(self, count: int) -> None:
        """Room for that many objects, and of dynamic graphs no more."""
        if self.manifest.dynamic and count != self.rows:
            self.resize("objects", count)
            self.rows = count

    def encode(self, frame: np.ndarray, prepared: OrtValue) -> Values:
        """What is known of a frame alone, by source."""
        found = {"prepare.prepared": prepared}
        outputs = self.sessions("encode", lookup(found))
        return {**found, **{f"encode.{name}": value for name, value in outputs.items()}}

    def segment(self, seen: Sequence[Values], count: int) -> Found:
        """Logits of the frame answered for; `seen` are the frames in `sees`."""
        outputs = self.sessions("segment", lookup(self.named(seen), self.state))
        rows = count if self.manifest.needs_mask else self.manifest.max_objects
        return Found(outputs["logits"], rows)

    def pixels_under(
        self, found: Found | None, row: int, prompt: np.ndarray | None
    ) -> tuple[int, int]:
        """How many pixels of a discovered object lie under the caller's mask, and of how many: no
        matter where none is both discovered and shown."""
        return 0, 0

    def named(self, seen: Sequence[Values]) -> Values:
        """The features of several frames: of the one answered for as they are, of the others with
        "@" and how far off they are."""
        values: Values = {}
        for offset, features in zip(self.manifest.sees, seen, strict=True):
            end = f"@{offset:+d}" if offset else ""
            values.update({name + end: value for name, value in features.items()})
        return values

    def remember(self, seen: Sequence[Values], marked: Marked) -> None:
        """The only writer of the memory."""
        if "remember" in self.manifest.graphs and marked.count:
            self._grow()
            self._keep("remember", lookup(self.caller(marked), self.named(seen), self.state))
        self.frame_index += 1

    def caller(self, marked: Marked) -> Values:
        """What the program itself has to say."""
        assert marked.masks is not None
        value = self.sessions.value
        return {
            "finish.masks": marked.masks,
            "caller.alive": value(np.arange(self.rows) < marked.before),
            "caller.prompted": value(marked.prompted),
            "caller.frame_index": value(np.array(self.frame_index)),
        }

    def _keep(self, verb: str, source: Any) -> Values:
        """Run a graph, and take its outputs that are of the memory."""
        outputs = self.sessions(verb, source)
        for port in self.manifest.graphs[verb].outputs:
            if port.source:
                self.state[port.source] = outputs[port.name]
        return outputs

    def _grow(self) -> None:
        """Room for the frame that is written next."""
        if self.manifest.dynamic and "state.cursor" in self.state:
            needed = int(self.state["state.cursor"].numpy().max(initial=0)) + 1
            if needed > self.free["frames"]:
                self.resize("frames", needed)

    def forget(self, slot: int, count: int) -> None:
        """Drop an object; the last of the `count` objects moves into its place."""
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
    more = [(0, 0)] * array.ndim
    more[axis] = (0, size - kept.shape[axis])
    return np.pad(kept, more)


POLICIES = {  # by name in a manifest, its module and class
    "memory": ("policies", "Policy"),
    "foreground": ("policies", "Policy"),
    "support": ("support", "SupportPolicy"),
    "proposals": ("proposals", "ProposalPolicy"),
    "tracks": ("tracks", "TrackPolicy"),
}


def make_policy(manifest: Manifest, sessions: Sessions) -> Policy:
    """The policy that a manifest names."""
    module, name = POLICIES[manifest.policy]
    found: Policy = getattr(import_module(f".{module}", __package__), name)(manifest, sessions)
    return found
