"""Memory policy of GIEL: a bounded store of frames, and the support frames that are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnxruntime import OrtValue

from ..policies.support import SupportPlan
from ..types import Geometry
from .policies import FrameMasks, Policy, SegmentOutput
from .sessions import Values


class SupportPolicy(Policy):
    """Policy of GIEL. Stored frames stay on the device as `remember` returned them. The values of a
    support place are computed when a frame enters it, and again when the objects change.
    """

    def reset(self) -> None:
        super().reset()
        settings = self.manifest.settings
        self.plan = SupportPlan(
            settings["stored_frames"],
            settings["support"],
            literal=settings["sampling"] == "literal",
        )
        self.store: dict[int, Values] = {}  # outputs of `remember` by frame
        self.values: list[OrtValue] = []  # by place

    def start(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.rows = 0 if self.manifest.dynamic else self.manifest.objects

    def make_rows(self, count: int) -> None:
        if self.manifest.dynamic and count != self.rows:
            self.rows = count
            self.plan.encode_anew()

    def segment(self, seen: Sequence[Values], count: int) -> SegmentOutput:
        alive = {"caller.alive": self.sessions.value(np.arange(self.rows) < count)}
        self._encode_places(alive)
        outputs = self.sessions("segment", self.named(seen), alive, self._places())
        return SegmentOutput(outputs["logits"], count, outputs["saliency"])

    def remember(self, seen: Sequence[Values], marked: FrameMasks) -> None:
        if marked.count:
            aux = {"segment.saliency": marked.aux or self._no_saliency()}
            stored = self.sessions("remember", self.caller(marked), self.named(seen), aux)
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

    def _encode_places(self, alive: Values) -> None:
        """Compute the values of every place that has none or whose objects have changed."""
        for place, (frame, encoded) in enumerate(self.plan.places):
            if encoded:
                continue
            stored = {f"remember.{name}": value for name, value in self.store[frame].items()}
            values = self.sessions("place", alive, stored)["values"]
            self.values[place : place + 1] = [values]
            self.plan.places[place] = (frame, self.rows)

    def _places(self) -> Values:
        """The inputs of `segment` for all places. Unused places repeat the first and are marked
        invalid."""
        used, support = len(self.plan.places), self.plan.support
        inputs = {"caller.valid": self.sessions.value(np.arange(support) < used)}
        for place in range(support):
            shown = place if place < used else 0
            stored = self.store[self.plan.places[shown][0]]
            inputs[f"state.key_{place}"] = stored["key"]
            inputs[f"state.summary_{place}"] = stored["summary"]
            inputs[f"state.values_{place}"] = self.values[shown]
        return inputs

    def _no_saliency(self) -> OrtValue:
        """Zeros for a frame that was not segmented: all its objects are prompted."""
        height, width = self.geometry.cells(self.manifest.settings["stride"])
        dtype = self.manifest.precision.replace("fp", "float")
        return self.sessions.value(np.zeros((1, height, width), dtype))
