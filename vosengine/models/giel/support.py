"""GIEL's memory: a bounded store of past frames, and the few of them that a frame is read from."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from ...config import GIELConfig
from ...policies.support import SupportPlan
from ...types import Size
from ..method import State


class Reading(NamedTuple):
    """What a frame is read from: T support frames of P cells each, O objects.

    keys       [T, P, Ck]
    values     [1 + O, T, P, Cv]   of all objects together, then of each (equation 8)
    summaries  [T, Ck]             for the temporal attention
    first      which of the T is the first annotated frame
    valid      bool [T], which of them count; None: all
    """

    keys: torch.Tensor
    values: torch.Tensor
    summaries: torch.Tensor
    first: int
    valid: torch.Tensor | None = None


class Encoded(NamedTuple):
    """What is stored of one frame: key [P, Ck], value [P, Cv], labels uint8 [H, W] (0 is the
    background, 1 + slot an object), summary [Ck] of the key."""

    key: torch.Tensor
    value: torch.Tensor
    labels: torch.Tensor
    summary: torch.Tensor


class Support(State):
    """The store, and in `places` the values of those frames that the next one is read from.

    Which frames those are, its plan says. A frame's instance values are computed when it comes to a
    place, and again when an object is forgotten, because they tell objects apart.

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
        self.plan = SupportPlan(frames, places, literal=config.sampling == "literal")

    @property
    def rows(self) -> dict[int, int]:
        """Stored frame -> row of the store."""
        return self.plan.rows

    @property
    def places(self) -> list[tuple[int, int]]:
        """(frame, instances encoded) in every place."""
        return self.plan.places

    @property
    def nbytes(self) -> int:
        held = (*self.store, self.keys, self.values, self.summaries)
        return sum(tensor.nbytes for tensor in held)

    def signature(self) -> Hashable:
        return self.object_count, [frame for frame, _ in self.places].index(0), len(self.places)

    def write(self, encoded: Encoded, object_count: int, prompted: bool) -> None:
        """Take in the next frame, and get ready to read for the one after it."""
        row = self.plan.add(prompted)
        for bank, tensor in zip(self.store, encoded, strict=True):
            bank[row] = tensor
        self.object_count = object_count
        self._encode_places()

    def _encode_places(self) -> None:
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
        self.object_count -= 1
        moved = self.plan.forget(slot, self.object_count)
        if moved is not None:
            table = torch.from_numpy(moved).to(self.store.labels.device)
            for row in self.rows.values():
                self.store.labels[row] = table[self.store.labels[row].long()]
            self._encode_places()

    def tensors(self) -> dict[str, torch.Tensor]:
        frames = sorted(self.rows)
        rows = [self.rows[frame] for frame in frames]
        reading = self.read()
        stored = {name: bank[rows] for name, bank in self.store._asdict().items()}
        return {
            **{f"store.{name}": tensor for name, tensor in stored.items()},
            "frames": torch.tensor(frames, dtype=torch.int64),
            "prompted": torch.tensor(self.plan.prompted, dtype=torch.int64),
            "places": torch.tensor(self.places, dtype=torch.int64).reshape(-1, 2),
            "count_every": torch.tensor([self.plan.frame_count, self.plan.every]),
            "values": reading.values,
        }

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.object_count = object_count
        plan = self.plan
        plan.rows = {frame: row for row, frame in enumerate(tensors["frames"].tolist())}
        for name, bank in self.store._asdict().items():
            bank[: len(plan.rows)] = tensors[f"store.{name}"]
        plan.prompted = tuple(tensors["prompted"].tolist())
        plan.places = [(frame, encoded) for frame, encoded in tensors["places"].tolist()]
        plan.frame_count, plan.every = tensors["count_every"].tolist()
        rows = [plan.rows[frame] for frame, _ in plan.places]
        self.keys[: len(rows)] = self.store.key[rows]
        self.summaries[: len(rows)] = self.store.summary[rows]
        self.values[: 1 + object_count, : len(rows)] = tensors["values"]
