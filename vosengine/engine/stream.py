"""Stream: host-side bookkeeping of one video, shared by the torch and the ONNX engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic

from ..errors import InputError
from ..types import A, Geometry, Prompt, Size
from .objects import ObjectSlots
from .ring import Pending, prompted_ids, still_needed
from .rules import ProcessBound


class Stream(ProcessBound, Generic[A]):
    """Base class of both engines' streams: counters, objects, ring and input checks.

    model, max_objects, online  settings of the subclass
    geometry     None before the first frame
    slots        the living objects and the reserved ids
    ring         frames held for upcoming answers
    frame_count  number of frames taken
    flushed      whether `flush` has answered for the last frames
    """

    model: str
    max_objects: int
    online: bool

    @property
    def traits(self) -> Any:
        """The object with `sees`, `needs_mask` and `takes_mask`: a Method, or an export's
        Manifest."""
        raise NotImplementedError

    @property
    def latency(self) -> int:
        """Number of frames that `step` needs beyond the one it answers for."""
        return 0 if self.online else max(0, *self.traits.sees)

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the living objects, ascending, without those of prompts still in the ring."""
        return self.slots.ascending

    @property
    def waiting(self) -> range:
        """Indices of the frames that `flush` will answer for."""
        first = self.frame_count if self.flushed else self.frame_count - self.latency
        return range(max(0, first), self.frame_count)

    def begin(self) -> None:
        """Start a new stream."""
        self.geometry: Geometry | None = None
        self.slots = ObjectSlots(self.max_objects)
        self.ring: list[Pending[A]] = []
        self.frame_count = 0
        self.flushed = False

    def reserve(self, object_ids: Iterable[int]) -> None:
        """Reserve ids (1..255), and capacity for them, for later prompts; objects that the model
        discovers in this stream get other ids.

        Raises  InputError for an id outside 1..255, and if the ids exceed max_objects.
        """
        self.slots.reserve(object_ids)

    def check_next(self, size: Size, prompt: Prompt[A] | None) -> Prompt[A] | None:
        """Check the next frame's size (H, W) and prompt; returns the prompt, None if it is empty.

        Raises  InputError for a flushed stream, another frame size, too many objects, or a mask
                that is missing or not taken by the model.
        """
        if self.flushed:
            raise InputError("step: the stream was flushed; call reset() to begin another")
        if self.geometry is not None and size != self.geometry.frame:
            height, width = self.geometry.frame
            raise InputError(
                f"frame: the stream is {height} x {width}, given {size[0]} x {size[1]}; "
                "resize the frame, or call reset() to begin another stream"
            )
        if prompt is not None and not self.traits.takes_mask:
            raise InputError(
                f"mask: {self.model} finds the foreground by itself and takes none; leave it out"
            )
        nonempty = prompt if prompt is not None and prompt.ids else None
        if self.geometry is None and self.traits.needs_mask and nonempty is None:
            empty = "" if prompt is None else "; this one shows no object, only id 0"
            raise InputError(
                f"mask: {self.model} needs one with the first frame, to say what to follow{empty}"
            )
        if nonempty is not None:
            self.slots.check_room((*prompted_ids(self.ring), *nonempty.ids))
        return nonempty

    def with_next(self, features: Any, prompt: Prompt[A] | None) -> list[Pending[A]]:
        """A copy of the ring with the next frame appended."""
        return [*self.ring, Pending(self.frame_count, features, prompt)]

    def take(self, ring: list[Pending[A]], geometry: Geometry) -> None:
        """Commit a ring with a new frame, trimmed to what later answers need, after its answer."""
        target = self.frame_count - self.latency
        self.ring, self.geometry = still_needed(ring, target, self.traits.sees), geometry
        self.frame_count += 1

    def saved(self) -> dict[str, Any]:
        """The bookkeeping as JSON-serialisable values, without the ring."""
        geometry, slots = self.geometry, self.slots
        return {
            "geometry": geometry and [geometry.frame, geometry.resized, geometry.padding],
            "ids": slots.in_slot_order,
            "ever": sorted(slots.ever),
            "reserved": sorted(slots.reserved),
            "frame_count": self.frame_count,
            "flushed": self.flushed,
        }

    def take_over(self, book: Mapping[str, Any], ring: list[Pending[A]]) -> None:
        """Restore the bookkeeping that `saved` returned, with the given ring, in a new stream."""
        self.geometry, self.ring = geometry_of(book), ring
        self.slots.assign(book["ids"])
        self.slots.ever |= set(book["ever"])
        self.slots.reserved |= set(book["reserved"])
        self.frame_count, self.flushed = book["frame_count"], book["flushed"]


def geometry_of(book: Mapping[str, Any]) -> Geometry | None:
    """The geometry in a book that `Stream.saved` returned, or None."""
    fields = book["geometry"]
    return Geometry(*map(tuple, fields)) if fields else None
