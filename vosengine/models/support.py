"""GIEL's memory: a bounded store of past frames, and the few of them that a frame is read from."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from ..config import GIELConfig
from ..types import Size
from .method import State

PROMPTED = 2  # later frames with a mask from the caller that are kept for good, the newest [O]


def choose_support(
    stored: list[int], now: int, size: int, *, literal: bool = False, prompted: tuple[int, ...] = ()
) -> list[int]:
    """Which of the stored frames support frame `now`, ascending (section 3.4).

    Up to `size` frames: all. Of more: the first, the one before, and the centres of equal segments
    of those between them, as EGMN's evaluation samples them; `literal`: the first, and the centres
    of equal segments of all the others. A centre that is not stored any more is the nearest that
    is. Frames that the caller has corrected take the place of centres [O].

    stored    indices of the stored frames, ascending, counted from the first annotated one
    prompted  those with a mask from the caller, beside the first
    """
    if len(stored) <= size:
        return list(stored)
    chosen = {stored[0]}
    if not literal:
        chosen.add(stored[-1])
    chosen |= set(prompted)
    end = now if literal else now - 1
    count = size - len(chosen)
    for segment in range(count):
        centre = 1 + int((segment + 0.5) * (end - 1) / count)
        left = (frame for frame in stored if frame not in chosen)
        chosen.add(min(left, key=lambda frame: (abs(frame - centre), frame)))
    return sorted(chosen)


class Reading(NamedTuple):
    """What a frame is read from: T support frames of P cells each, O objects.

    keys       [T, P, Ck]
    values     [1 + O, T, P, Cv]   of all objects together, then of each (equation 8)
    summaries  [T, Ck]             for the temporal attention
    first      which of the T is the first annotated frame
    """

    keys: torch.Tensor
    values: torch.Tensor
    summaries: torch.Tensor
    first: int


class Encoded(NamedTuple):
    """What is stored of one frame: key [P, Ck], value [P, Cv], labels uint8 [H, W] (0 is the
    background, 1 + slot an object), summary [Ck] of the key."""

    key: torch.Tensor
    value: torch.Tensor
    labels: torch.Tensor
    summary: torch.Tensor


class Support(State):
    """The store, and in `places` the values of those frames that the next one is read from.

    Every `every`-th frame is kept, the first and the last, and the newest that the caller has
    corrected; when the store is full, `every` doubles. A frame's instance values are computed when
    it comes to a place, and again when an object is forgotten, because they tell objects apart.

    instance_values  (value [P, Cv], labels [H, W], slots) -> [slots, P, Cv]
    """

    def __init__(
        self,
        config: GIELConfig,
        cells: Size,
        size: Size,
        max_objects: int,
        like: torch.Tensor,
        instance_values: Callable[[torch.Tensor, torch.Tensor, range], torch.Tensor],
    ) -> None:
        self.config = config
        self.instance_values = instance_values
        positions, frames, places = cells[0] * cells[1], config.stored_frames, config.support
        value_channels = config.value_channels + config.read_masks

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device=like.device, dtype=like.dtype)

        self.store = Encoded(
            empty(frames, positions, config.key_channels),
            empty(frames, positions, value_channels),
            torch.empty(frames, *size, device=like.device, dtype=torch.uint8),
            empty(frames, config.key_channels),
        )
        self.keys = empty(places, positions, config.key_channels)
        self.values = empty(1 + max_objects, places, positions, value_channels)
        self.summaries = empty(places, config.key_channels)
        self._clear()

    def _clear(self) -> None:
        self.frame_count = 0  # since the first annotated frame
        self.every = 1
        self.rows: dict[int, int] = {}  # stored frame -> row of the store
        self.prompted: tuple[int, ...] = ()
        self.places: list[tuple[int, int]] = []  # (frame, instances encoded) in every place

    @property
    def nbytes(self) -> int:
        held = (*self.store, self.keys, self.values, self.summaries)
        return sum(tensor.nbytes for tensor in held)

    def signature(self) -> Hashable:
        return self.object_count, [frame for frame, _ in self.places].index(0), len(self.places)

    def write(self, encoded: Encoded, object_count: int, prompted: bool) -> None:
        """Take in the next frame, and get ready to read for the one after it."""
        now = self.frame_count
        room = min(PROMPTED, self.config.support - 3)  # beside the first, the last and a centre
        if prompted and now and room:
            self.prompted = (*self.prompted, now)[-room:]
        self._make_room()
        row = next(row for row in range(self.config.stored_frames) if row not in self.rows.values())
        for bank, tensor in zip(self.store, encoded, strict=True):
            bank[row] = tensor
        self.rows[now] = row
        self.frame_count = now + 1
        self.object_count = object_count
        self._take_places()

    def _make_room(self) -> None:
        """Drop the frame before unless its turn to be kept has come; thin out a full store."""
        pinned = {0, *self.prompted}
        while True:
            kept = {t: row for t, row in self.rows.items() if t % self.every == 0 or t in pinned}
            if len(kept) < self.config.stored_frames:
                self.rows = kept
                return
            self.every *= 2

    def _take_places(self) -> None:
        """Put the frames that support the next one in place; what stays is not computed anew."""
        chosen = choose_support(
            sorted(self.rows),
            self.frame_count,
            self.config.support,
            literal=self.config.sampling == "literal",
            prompted=self.prompted,
        )
        held = [frame for frame, _ in self.places]
        fresh = iter([frame for frame in chosen if frame not in held])
        self.places = [
            (frame, encoded) if frame in chosen else (next(fresh), 0)
            for frame, encoded in self.places
        ]
        self.places += [(frame, 0) for frame in fresh]
        for place in range(len(self.places)):
            self._encode_place(place)

    def _encode_place(self, place: int) -> None:
        """Copy a frame into its place, with the values of those objects that it has none of yet."""
        frame, encoded = self.places[place]
        row = self.rows[frame]
        if encoded == 0:
            self.keys[place] = self.store.key[row]
            self.values[0, place] = self.store.value[row]
            self.summaries[place] = self.store.summary[row]
        slots = range(encoded, self.object_count)
        if slots:
            values = self.instance_values(self.store.value[row], self.store.labels[row], slots)
            self.values[1 + slots.start : 1 + slots.stop, place] = values
        self.places[place] = (frame, self.object_count)

    def read(self) -> Reading:
        """Views of what the next frame is read from."""
        count = len(self.places)
        return Reading(
            self.keys[:count],
            self.values[: 1 + self.object_count, :count],
            self.summaries[:count],
            [frame for frame, _ in self.places].index(0),  # the first frame never goes
        )

    def forget(self, slot: int) -> None:
        """Drop an object: in the stored labels it becomes background. With the last one all frames
        go, and the next mask begins anew."""
        last = self.object_count - 1
        self.object_count = last
        if last == 0:
            self._clear()
            return
        table = torch.arange(256, device=self.store.labels.device, dtype=torch.uint8)
        table[1 + slot] = 0
        if slot != last:
            table[1 + last] = 1 + slot
        for row in self.rows.values():
            self.store.labels[row] = table[self.store.labels[row].long()]
        self.places = [(frame, 0) for frame, _ in self.places]
        for place in range(len(self.places)):
            self._encode_place(place)

    def tensors(self) -> dict[str, torch.Tensor]:
        frames = sorted(self.rows)
        rows = [self.rows[frame] for frame in frames]
        reading = self.read()
        stored = {name: bank[rows] for name, bank in self.store._asdict().items()}
        return {
            **{f"store.{name}": tensor for name, tensor in stored.items()},
            "frames": torch.tensor(frames, dtype=torch.int64),
            "prompted": torch.tensor(self.prompted, dtype=torch.int64),
            "places": torch.tensor(self.places, dtype=torch.int64).reshape(-1, 2),
            "count_every": torch.tensor([self.frame_count, self.every]),
            "values": reading.values,
        }

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.object_count = object_count
        self.rows = {frame: row for row, frame in enumerate(tensors["frames"].tolist())}
        for name, bank in self.store._asdict().items():
            bank[: len(self.rows)] = tensors[f"store.{name}"]
        self.prompted = tuple(tensors["prompted"].tolist())
        self.places = [(frame, encoded) for frame, encoded in tensors["places"].tolist()]
        self.frame_count, self.every = tensors["count_every"].tolist()
        rows = [self.rows[frame] for frame, _ in self.places]
        self.keys[: len(rows)] = self.store.key[rows]
        self.summaries[: len(rows)] = self.store.summary[rows]
        self.values[: 1 + object_count, : len(rows)] = tensors["values"]
