"""GIEL's memory: frames in a bounded store, by number, and the places that are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnxruntime import OrtValue

from ..policies.support import SupportPlan
from ..types import Geometry
from .policies import Found, Marked, Policy
from .sessions import Values, lookup


class SupportPolicy(Policy):
    """What was stored of every frame stays as the graphs gave it, on the device. The values of a
    place are computed when a frame comes to it, and anew when objects come or go.
    """

    def reset(self) -> None:
        super().reset()
        chosen = self.manifest.settings
        self.plan = SupportPlan(
            chosen["stored_frames"], chosen["support"], literal=chosen["sampling"] == "literal"
        )
        self.store: dict[int, Values] = {}  # by frame, with the outputs' names
        self.values: list[OrtValue] = []  # of every place

    def start(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.rows = 0 if self.manifest.dynamic else self.manifest.objects

    def make_rows(self, count: int) -> None:
        if self.manifest.dynamic and count != self.rows:
            self.rows = count
            self.plan.encode_anew()

    def segment(self, seen: Sequence[Values], count: int) -> Found:
        told = {"caller.alive": self.sessions.value(np.arange(self.rows) < count)}
        self._encode_places(told)
        outputs = self.sessions("segment", lookup(self.named(seen), told, self._places()))
        return Found(outputs["logits"], count, outputs["saliency"])

    def remember(self, seen: Sequence[Values], marked: Marked) -> None:
        if marked.count:
            aux = {"segment.saliency": marked.aux or self._no_saliency()}
            source = lookup(self.caller(marked), self.named(seen), aux)
            stored = self.sessions("remember", source)
            self.plan.add(bool(marked.prompted.any()))
            now = self.plan.frame_count - 1
            self.store = {
                frame: stored if frame == now else self.store[frame] for frame in self.plan.rows
            }
        self.frame_index += 1

    def forget(self, slot: int, count: int) -> None:
        table = self.plan.forget(slot, count - 1)
        if table is None:
            self.store, self.values = {}, []
        else:
            for stored in self.store.values():
                stored["labels"] = self.sessions.value(table[stored["labels"].numpy()])
        self.make_rows(count - 1)

    def _encode_places(self, told: Values) -> None:
        """The values of every place that has none, or of other objects than there are."""
        for place, (frame, encoded) in enumerate(self.plan.places):
            if encoded:
                continue
            stored = {f"remember.{name}": value for name, value in self.store[frame].items()}
            values = self.sessions("place", lookup(told, stored))["values"]
            self.values[place : place + 1] = [values]
            self.plan.places[place] = (frame, self.rows)

    def _places(self) -> Values:
        """What `segment` takes of the places. Those not in use show the first one's frame, and do
        not count."""
        used, support = len(self.plan.places), self.plan.support
        found = {"caller.valid": self.sessions.value(np.arange(support) < used)}
        for place in range(support):
            shown = place if place < used else 0
            stored = self.store[self.plan.places[shown][0]]
            found[f"state.key_{place}"] = stored["key"]
            found[f"state.summary_{place}"] = stored["summary"]
            found[f"state.values_{place}"] = self.values[shown]
        return found

    def _no_saliency(self) -> OrtValue:
        """For a frame that was not segmented: all its objects are the caller's."""
        height, width = self.geometry.cells(self.manifest.settings["stride"])
        dtype = self.manifest.precision.replace("fp", "float")
        return self.sessions.value(np.zeros((1, height, width), dtype))
