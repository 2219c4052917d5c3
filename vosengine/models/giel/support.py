"""GIEL's support memory: a bounded store of past frames, a few of which are read per frame."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from ...config import GIELConfig
from ...policies.support import SupportPlan
from ...types import Size
from ..method import State


class Reading(NamedTuple):
    """Support of one read: T frames of P cells each, the first annotated one first; O objects.

    keys       [T, P, Ck]
    values     [1 + O, T, P, Cv]   of the union, then of each object (equation 8)
    summaries  [T, Ck]             inputs of the temporal attention
    valid      [T] bool; False: not read; None: all valid
    """

    keys: torch.Tensor
    values: torch.Tensor
    summaries: torch.Tensor
    valid: torch.Tensor | None = None


class Encoded(NamedTuple):
    """Stored form of one frame."""

    key: torch.Tensor  # [P, Ck]
    value: torch.Tensor  # [P, Cv]
    labels: torch.Tensor  # [H, W] uint8, 0 is the background, 1 + slot an object
    summary: torch.Tensor  # [Ck], of the key


class Support(State):
    """GIEL's state: the store of frames, and in `places` the frames that the next one reads.

    `SupportPlan` chooses the frames. Instance values are computed when a frame enters a place, and
    again when an object is forgotten, because they depend on all objects' labels.

    instance_values  function (value [P, Cv], labels [H, W], slots) -> [len(slots), P, Cv]
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
    def nbytes(self) -> int:
        banks = (*self.store, self.keys, self.values, self.summaries)
        return sum(bank.nbytes for bank in banks)

    def signature(self) -> Hashable:
        return self.object_count, len(self.plan.places)

    def write(self, encoded: Encoded, object_count: int, prompted: bool) -> None:
        """Store the next frame and encode the places that the following frame reads."""
        row = self.plan.add(prompted)
        for bank, tensor in zip(self.store, encoded, strict=True):
            bank[row] = tensor
        self.object_count = object_count
        self._encode_places()

    def _encode_places(self) -> None:
        """Copy frames to their places and add the values of objects not yet encoded there."""
        places = self.plan.places
        for place, (frame, encoded) in enumerate(places):
            row = self.plan.rows[frame]
            if encoded == 0:
                self.keys[place] = self.store.key[row]
                self.values[0, place] = self.store.value[row]
                self.summaries[place] = self.store.summary[row]
            slots = range(encoded, self.object_count)
            if slots:
                values = self.instance_values(self.store.value[row], self.store.labels[row], slots)
                self.values[1 + slots.start : 1 + slots.stop, place] = values
            places[place] = (frame, self.object_count)

    def read(self) -> Reading:
        """Views of the support that the next frame reads."""
        count = len(self.plan.places)
        values = self.values[: 1 + self.object_count, :count]
        return Reading(self.keys[:count], values, self.summaries[:count])

    def forget(self, slot: int) -> None:
        """Drop the object in `slot`: its stored labels become background. Dropping the last object
        clears all frames; the next mask starts a new support."""
        self.object_count -= 1
        moved = self.plan.forget(slot, self.object_count)
        if moved is not None:
            table = torch.from_numpy(moved).to(self.store.labels.device)
            for row in self.plan.rows.values():
                self.store.labels[row] = table[self.store.labels[row].long()]
            self._encode_places()

    def tensors(self) -> dict[str, torch.Tensor]:
        frames = sorted(self.plan.rows)
        rows = [self.plan.rows[frame] for frame in frames]
        reading = self.read()
        stored = {name: bank[rows] for name, bank in self.store._asdict().items()}
        return {
            **{f"store.{name}": tensor for name, tensor in stored.items()},
            "frames": torch.tensor(frames, dtype=torch.int64),
            "prompted": torch.tensor(self.plan.prompted, dtype=torch.int64),
            "places": torch.tensor(self.plan.places, dtype=torch.int64).reshape(-1, 2),
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
