"""Streams over exported models, with onnxruntime and numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import OrtValue

from ..engine.ring import Pending, View
from ..engine.stream import Stream
from ..errors import ConfigError, InputError
from ..types import Geometry, Result, Size
from .manifest import Manifest
from .pictures import check_frame, check_mask
from .policies import FrameMasks, Policy, SegmentOutput
from .proposals import ProposalPolicy
from .sessions import Sessions, Values
from .support import SupportPolicy
from .tracks import TrackPolicy

POLICIES: dict[str, type[Policy]] = {  # by a manifest's `policy`
    "memory": Policy,
    "foreground": Policy,
    "support": SupportPolicy,
    "proposals": ProposalPolicy,
    "tracks": TrackPolicy,
}


class OnnxSegmenter(Stream[np.ndarray]):
    """A stream over exported graphs, with the `step`, `flush`, `reset`, `remove` and Result of
    Segmenter; labels are numpy arrays.

        segmenter = OnnxSegmenter("exported/munet")
        result = segmenter.step(frame, mask)      # first frame, with object ids 1..255
        result = segmenter.step(frame)            # every further frame

    folder       an export written by `vosengine export`
    providers    onnxruntime's providers in order of preference; None: CUDA if available, else CPU
    threads      onnxruntime's threads; 0: onnxruntime's default
    max_objects  most objects at a time; None: the export's
    online       answer every frame at once, without future frames
    proposals    source of object proposals instead of the export's detector: a callable
                 (frame uint8 [H, W, 3], its index) -> vosengine.onnx.proposals.FrameProposals

    Frames are uint8. With a static export, frames are stretched to its size, and every row is
    computed whether it has an object or not.

    Raises  WeightsError: the folder is no export or was changed; DeviceError: a provider is not
            available; ConfigError: another argument is invalid.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        providers: Sequence[str] | None = None,
        threads: int = 0,
        max_objects: int | None = None,
        online: bool = False,
        proposals: Callable[[np.ndarray, int], Any] | None = None,
    ) -> None:
        super().__init__("make one anew from the folder of its export")
        self.manifest = Manifest.read(Path(folder))
        self.model = self.manifest.model
        room = self.manifest.max_objects
        if max_objects is not None and not 1 <= max_objects <= room:
            raise ConfigError(f"max_objects: wanted 1..{room} (the export's), given {max_objects}")
        self.sessions = Sessions(Path(folder), self.manifest, providers, threads)
        self.max_objects = max_objects or room
        self.online = online
        self.policy = POLICIES[self.manifest.policy](self.manifest, self.sessions)
        if proposals is not None:
            self.policy.ask(proposals)
        self.reset()

    @property
    def traits(self) -> Manifest:
        return self.manifest

    def reset(self) -> None:
        """Discard the state; the next frame is the first of a new stream, of any size."""
        self.begin()
        self.policy.reset()

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Result[np.ndarray] | None:
        """Segment one frame, as Segmenter.step does.

        frame    [H, W, 3] uint8 RGB
        mask     as Segmenter.step takes it: [H, W] object ids, or [O, H, W] planes
        returns  the Result for the frame `latency` steps back, or None for the first `latency`

        Raises  InputError, before anything has changed; StateError in the child of a fork.
        """
        self.check_process()
        image = check_frame(frame)
        size = (image.shape[0], image.shape[1])
        prompt = None if mask is None else check_mask(mask, size)
        prompt = self.check_next(size, prompt)
        geometry = self.geometry
        if geometry is None:
            manifest = self.manifest
            geometry = Geometry.fit(size, size=manifest.size, multiple=manifest.multiple)
            self.policy.start(geometry)
        features = self.policy.encode(image, self.sessions.prepared(image, geometry))
        ring, target = self.with_next(features, prompt), self.frame_count - self.latency
        result = self._answer(ring, target, geometry) if target >= 0 else None
        self.take(ring, geometry)
        return result

    def flush(self) -> list[Result[np.ndarray]]:
        """Return the results of the last `latency` frames. Afterwards the stream is closed to
        further frames."""
        self.check_process()
        waiting, geometry = self.waiting, self.geometry
        if geometry is None or not waiting:
            return []
        results = [self._answer(self.ring, target, geometry) for target in waiting]
        self.flushed = True
        return results

    def remove(self, object_ids: int | Iterable[int]) -> None:
        """Remove one or several objects from the next answer on. Their ids can be reused.

        object_ids  an id or several; after an error none is removed

        Raises  InputError, before anything has changed: an object is not alive, or the model has
                one object that always exists.
        """
        ids = self.slots.living(object_ids)
        if ids and not self.manifest.takes_mask:
            raise InputError(
                f"remove: {self.model} answers with one foreground mask, which always exists"
            )
        for object_id in ids:
            self.policy.forget(self.slots.slot(object_id), len(self.slots))
            self.slots.remove(object_id)

    def _answer(
        self, ring: Sequence[Pending[np.ndarray]], target: int, geometry: Geometry
    ) -> Result[np.ndarray]:
        """Segment, postprocess and remember the frame with index `target`."""
        view = View.of(ring, target, self.manifest.sees)
        seen, prompt = view.seen, view.prompt
        named, shown = ((), None) if prompt is None else (prompt.ids, prompt.labels)
        known = len(self.slots)
        looks = known > 0 or not self.manifest.needs_mask
        segmented = self.policy.segment(seen, known) if looks else None
        rows = range(known, known if segmented is None else segmented.count)
        pixels = [self.policy.pixels_under(segmented, row, shown) for row in rows]
        fresh = self.slots.discovered(pixels, (*named, *view.later))
        by_slot = (*self.slots.joined_by(named), *(i for i, _ in fresh))
        aux = None if segmented is None else segmented.aux
        if not by_slot:
            nobody = np.zeros(self.policy.rows, dtype=bool)
            self.policy.remember(seen, FrameMasks(None, nobody, 0, 0, aux))
            background = np.zeros(geometry.frame, dtype=np.uint8)
            certain = partial(np.ones, (1, *geometry.frame), np.float32)
            return Result(background, (), target, certain)
        self.policy.make_rows(len(by_slot))
        output = self._mask_output(segmented, known, by_slot, dict(fresh), shown, geometry)
        outputs = output.finish(geometry.resized, geometry.padding)
        labels = outputs["labels"]
        if geometry.resized != geometry.frame:
            labels = output.finish(geometry.frame)["labels"]
        prompted = np.zeros(self.policy.rows, dtype=bool)
        prompted[[slot for slot, i in enumerate(by_slot) if i in named]] = True
        marked = FrameMasks(outputs["masks"], prompted, known, len(by_slot), aux)
        self.policy.remember(seen, marked)
        self.slots.assign(by_slot)
        return output.result(labels.numpy(), target)

    def _mask_output(
        self,
        segmented: SegmentOutput | None,
        known: int,
        by_slot: tuple[int, ...],
        fresh: dict[int, int],
        prompt: np.ndarray | None,
        geometry: Geometry,
    ) -> MaskOutput:
        """Arrange the frame's logits, one row per slot, for postprocessing."""
        rows = self.policy.rows
        scored = {slot: slot for slot in range(known)}
        scored |= {slot: fresh[i] for slot, i in enumerate(by_slot) if i in fresh}
        alive = np.zeros(rows, dtype=bool)
        alive[list(scored)] = True
        if segmented is None:
            logits = self.sessions.value(np.zeros((rows, 1, 1), dtype=np.float32))
        elif segmented.logits.shape()[0] == rows and all(a == b for a, b in scored.items()):
            logits = segmented.logits
        else:
            scores = segmented.logits.numpy()
            by_row = np.zeros((rows, *scores.shape[1:]), dtype=np.float32)
            by_row[list(scored)] = scores[list(scored.values())]
            logits = self.sessions.value(by_row)
        slots = np.zeros(geometry.frame, dtype=np.uint8)
        if prompt is not None:
            table = np.zeros(256, dtype=np.uint8)
            table[list(by_slot)] = np.arange(1, 1 + len(by_slot))
            slots = table[prompt]
        value = self.sessions.value
        return MaskOutput(
            self.sessions, logits, value(alive), value(slots), by_slot, geometry, self.manifest
        )


@dataclass(frozen=True)
class MaskOutput:
    """Logits of one frame, from which labels and probabilities are computed at any size.

    logits   [rows, h, w] float32
    alive    bool [rows], rows with logits of an object
    prompt   uint8 [H, W], 1 + slot of the prompted object, or 0
    by_slot  object ids
    """

    sessions: Sessions
    logits: OrtValue
    alive: OrtValue
    prompt: OrtValue
    by_slot: tuple[int, ...]
    geometry: Geometry
    manifest: Manifest

    def finish(self, size: Size, padding: tuple[int, ...] = (0, 0, 0, 0)) -> Values:
        """Run the graph `finish`: labels and padded masks at that size."""
        value = self.sessions.value
        region = self.geometry.region(self.manifest.settings["stride"])
        inputs = {
            "logits": self.logits,
            "alive": self.alive,
            "prompt": self.prompt,
            "size": value(np.array(size)),
            "region": value(np.array(region, dtype=np.float64)),
            "padding": value(np.array(padding)),
        }
        return self.sessions("finish", inputs)

    def result(self, labels: np.ndarray, frame_index: int) -> Result[np.ndarray]:
        """The Result of labels given as 1 + slot."""
        table = np.zeros(256, dtype=np.uint8)
        table[1 : 1 + len(self.by_slot)] = self.by_slot
        ids = tuple(sorted(self.by_slot))
        return Result(table[labels], ids, frame_index, self.probabilities)

    def probabilities(self) -> np.ndarray:
        """Probabilities float32 [1 + O, H, W]: background, then objects in ascending id order."""
        masks: Any = self.finish(self.geometry.frame)["masks"].numpy()
        order = [0, *(1 + self.by_slot.index(i) for i in sorted(self.by_slot))]
        planes: np.ndarray = masks[order]
        return planes
