"""The host's book of one video, whichever engine it runs on: no tensor of the network is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic

from ..errors import InputError
from ..types import A, Geometry, Prompt, Size
from .objects import ObjectSlots
from .ring import Pending, awaited, still_needed
from .rules import StaysHere


class Stream(StaysHere, Generic[A]):
    """What both engines note of a video, and what they refuse of it.

    model, max_objects, online  as the engine was made
    geometry     None before the first frame
    slots        the objects alive, and the ids that are kept for the caller
    ring         the frames that are held for answers to come
    frame_count  frames taken
    flushed      whether the last of them were answered for
    """

    model: str
    max_objects: int
    online: bool

    @property
    def traits(self) -> Any:
        """What says `sees`, `needs_mask` and `takes_mask`: a Method, or the Manifest of an
        export."""
        raise NotImplementedError

    @property
    def latency(self) -> int:
        """How many frames `step` must see beyond the one it answers for."""
        return 0 if self.online else max(0, *self.traits.sees)

    @property
    def ids(self) -> tuple[int, ...]:
        """The objects alive, ascending; those of a prompt still in the ring not among them."""
        return self.slots.ascending

    @property
    def waiting(self) -> range:
        """The frames that `flush` answers for."""
        first = self.frame_count if self.flushed else self.frame_count - self.latency
        return range(max(0, first), self.frame_count)

    def begin(self) -> None:
        """The next frame is the first."""
        self.geometry: Geometry | None = None
        self.slots = ObjectSlots(self.max_objects)
        self.ring: list[Pending[A]] = []
        self.frame_count = 0
        self.flushed = False

    def reserve(self, object_ids: Iterable[int]) -> None:
        """Keep these ids (1..255), and room for them, for prompts to come: objects that the model
        discovers in this stream get others.

        Raises  InputError for what is no id, and for more of them than max_objects.
        """
        self.slots.reserve(object_ids)

    def check_next(self, size: Size, prompt: Prompt[A] | None) -> Prompt[A] | None:
        """Raise InputError unless a frame of that size, with a mask or without, may come next.
        Returns the prompt; None where it shows no object, and so says nothing."""
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
        shown = prompt if prompt is not None and prompt.ids else None
        if self.geometry is None and self.traits.needs_mask and shown is None:
            empty = "" if prompt is None else "; this one shows no object, only id 0"
            raise InputError(
                f"mask: {self.model} needs one with the first frame, to say what to follow{empty}"
            )
        if shown is not None:
            self.slots.check_room((*awaited(self.ring), *shown.ids))
        return shown

    def with_next(self, features: Any, prompt: Prompt[A] | None) -> list[Pending[A]]:
        """The ring with the next frame, which is not taken yet."""
        return [*self.ring, Pending(self.frame_count, features, prompt)]

    def take(self, ring: list[Pending[A]], geometry: Geometry) -> None:
        """Go on to the frame after that, which was answered for."""
        target = self.frame_count - self.latency
        self.ring, self.geometry = still_needed(ring, target, self.traits.sees), geometry
        self.frame_count += 1

    def saved(self) -> dict[str, Any]:
        """What a SavedStream has of it, but for the ring: numbers and lists of them, as JSON takes
        them."""
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
        """Be the stream of which `saved` gave this."""
        self.begin()
        self.geometry, self.ring = geometry_of(book), ring
        self.slots.assign(book["ids"])
        self.slots.ever |= set(book["ever"])
        self.slots.reserved |= set(book["reserved"])
        self.frame_count, self.flushed = book["frame_count"], book["flushed"]


def geometry_of(book: Mapping[str, Any]) -> Geometry | None:
    """That of a stream of which `saved` gave this."""
    found = book["geometry"]
    return Geometry(*map(tuple, found)) if found else None
