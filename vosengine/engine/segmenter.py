"""Segmenter: one video stream, stepped frame by frame, for any method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..ambient import own_settings
from ..config import MemoryConfig, ModelConfig, check_working_size
from ..detectors import open_proposals
from ..errors import ConfigError, InputError, StateError
from ..files import write_whole
from ..frames import Array, check_frame, check_mask, prepare
from ..kernels.spans import listened, span, spanned
from ..memory import memory_of
from ..proposals import ProposalSource, check_proposals, clean, to_network
from ..runtime import GraphCache, Uploader, copied
from ..types import Geometry, Prompt, Result, Size
from ..zoo.registry import entry
from .engine import Engine, Job
from .postprocess import MaskOutput, ObjectRows, compose, finish, make_prompt
from .resume import pack_stream, restore_stream
from .ring import Pending, View, prompted_ids
from .snapshot import read_file
from .stream import Stream


@dataclass(frozen=True)
class PendingStep:
    """A step that is computed but not committed to the stream.

    geometry  of the stream
    state     the method's state
    ring      the frames held, with the new one
    target    index of the frame answered for; below 0 during the first `latency` frames
    """

    geometry: Geometry
    state: Any
    ring: list[Pending[torch.Tensor]]
    target: int


class Segmenter(Stream[torch.Tensor]):
    """Streaming video object segmentation: one `step` per frame, bounded memory.

        segmenter = Segmenter("munet")
        result = segmenter.step(frame, mask)      # first frame, with object ids 1..255
        result = segmenter.step(frame)            # every further one

    Models that need no mask ("imcnet", "target_aware") discover objects by themselves and assign
    them the smallest ids that the stream has not used.

    model        a name from `list_models()`
    weights      None for the best weights that ship, a tag, or the path of a .safetensors file
    device       "auto" (the first GPU, else the CPU), "cpu", "cuda", "cuda:1"...
    precision    "fp32", "tf32" (GPU only), "bf16", "fp16", or "auto": bf16 if the device supports
                 it and the model is safe in it, else fp32; softmax, norms and odds are always fp32
    max_objects  maximum number of objects at a time, 1..255; None: the model's default
    size         working resolution in pixels: the short side, or (height, width) to stretch frames
                 to, or "native" for the frame's own; None: the model's default
    memory       a MemoryConfig, or a memory policy ("every-5", "all", "afb"); None: the model's
                 default
    online       answer without latency: a model that looks ahead uses the newest frame in place of
                 future ones
    engine       "fast"; "eager", layers unmodified, for debugging and comparison; or an Engine,
                 whose weights, device and precision the stream shares
    proposals    source of object proposals, in place of the model's own detector; None: that
                 detector, or the default source of the model's registry entry if it has none
    config       the network's configuration; only with random weights

    The caller's torch settings (inference mode, autocast, default dtype and device) do not affect
    results and are not changed; `proposals` is called under them. A Segmenter cannot be copied or
    pickled (use `snapshot` or `save_state`), nor used in a forked child.

    Raises  ConfigError, DeviceError or WeightsError. `step` raises InputError on bad input and
            leaves the stream unchanged.
    """

    @own_settings()
    def __init__(
        self,
        model: str,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        max_objects: int | None = None,
        size: int | Size | str | None = None,
        memory: MemoryConfig | str | None = None,
        online: bool = False,
        engine: str | Engine = "fast",
        proposals: ProposalSource | None = None,
        config: ModelConfig | None = None,
    ) -> None:
        super().__init__(
            "use save_state(path), or snapshot(), and load_state or restore of another one with "
            "the same settings"
        )
        if max_objects is not None and not 1 <= max_objects <= 255:
            raise ConfigError(f"max_objects: wanted 1..255, given {max_objects}")
        check_working_size(size)
        network: dict[str, Any] = {
            "weights": weights, "device": device, "precision": precision, "config": config,
        }  # fmt: skip
        if isinstance(engine, Engine):
            engine.check_shared(model, network)
        else:
            engine = Engine(model, mode=engine, **network)
        self.runs_on = engine
        self.model, self.card = model, engine.card
        self.device, self.precision, self.dtype = engine.device, engine.precision, engine.dtype
        self.engine = engine.mode
        self._upload = Uploader(self.device)
        method = self.method
        self.memory = memory_of(model, method.config, memory)
        if proposals is not None and not method.takes_proposals:
            raise ConfigError(f"proposals: {model} takes none; leave them out")
        if proposals is None and method.needs_proposals:
            proposals = open_proposals(entry(model).proposals, str(self.device))
        self.max_objects = max_objects or method.max_objects
        self.size = method.size if size is None else None if isinstance(size, str) else size
        self.online, self.proposals = online, proposals
        self._ended = False
        self.state: Any = None  # the method's State of this stream; None before its first frame
        self.reset()

    @property
    def method(self) -> Any:
        """The network, shared by the engine's streams."""
        return self.runs_on.method

    @property
    def traits(self) -> Any:
        return self.method

    @property
    def memory_bytes(self) -> int:
        """Maximum bytes of this stream's memory on the device; 0 before the first frame."""
        return 0 if self.state is None else int(self.state.nbytes)

    def reset(self) -> None:
        """Discard the stream: the next frame is the first of a new one, of any size.

        Raises  StateError as `step`.
        """
        with self.exclusive("reset"):
            if self.state is not None:
                self.state.release()
            self.begin()
            self.state = None
            self._rows: ObjectRows | None = None  # cache of `rows`
            self._graphs = self.runs_on.graphs()

    @spanned("step")
    def step(self, frame: Array, mask: Array | None = None) -> Result[torch.Tensor] | None:
        """Process one frame and return the result for the frame `latency` frames earlier.

        frame  [H, W, 3] RGB, uint8 or float32 in 0..1, numpy or torch, on any device
        mask   [H, W] object ids in 1..255, 0 unlabelled, of an integer dtype or bool: starts new
               objects and corrects existing ones; all 0 is no mask. Or [O, H, W], one plane for
               each of the objects 1..O: float32 scores in 0..1 (argmax where it exceeds 0.5), or
               binary uint8 or bool

        Returns  the Result, or None for the first `latency` frames of a stream

        Raises  InputError, before any change, also for a mask if the model takes none; StateError
                in a forked child, for a closed stream, and while a frame of this stream is pending
                in its engine; CapacityError if the memory budget is exhausted.
        """
        with self.exclusive("step"):
            return self.run_job(self.make_job(frame, mask))

    @contextmanager
    def exclusive(self, verb: str) -> Iterator[None]:
        """Hold the engine's lock, since its streams share memory pages.

        Raises  StateError in a forked child, for a closed stream, and while a frame of it waits.
        """
        self.check_process()  # in a forked child the lock may never be released
        with self.runs_on.lock:
            if self._ended:
                raise StateError(f"{verb}: the stream is closed; open another")
            if self.runs_on.waits_for(self):
                raise StateError(f"{verb}: a frame of this stream waits; call engine.step() first")
            yield

    def end(self) -> None:
        """Close the stream and free its memory; called by `Engine.close`."""
        if not self._ended:
            self.reset()
            self._ended = True

    def make_job(self, frame: Array, mask: Array | None) -> Job:
        """Check `step`'s arguments, move them to the device, and query the proposal source.

        frame  [H, W, 3] RGB
        mask   [H, W] or [O, H, W], or None

        Does not change the stream. Raises InputError.
        """
        with own_settings():
            image = check_frame(frame)
            size = (image.shape[0], image.shape[1])
            prompt = None if mask is None else make_prompt(check_mask(mask, size), self.device)
            prompt = self.check_next(size, prompt)
            image = self._upload(image)
        proposals = None
        if self.proposals is not None:
            # The caller's code runs under the caller's settings, apart from gradients.
            with torch.no_grad(), span("proposals"):
                proposals = self.proposals(image, self.frame_count)
        with own_settings():
            if self.proposals is not None:
                check_proposals(proposals, size)
        geometry = self.geometry or Geometry.fit(size, size=self.size, multiple=self.method.stride)
        return Job(image, geometry, prompt, proposals)

    @own_settings()
    def run_job(self, job: Job) -> Result[torch.Tensor] | None:
        """Compute and commit the step for a job; returns what `step` returns."""
        with self.precision.applied():
            step = self.prepare_step(job)
            result = None
            if step.target >= 0:
                result = self._answer(step.ring, step.target, step.state, step.geometry)
        self.commit_step(step)
        return result

    def prepare_step(self, job: Job) -> PendingStep:
        """Encode a job's frame and append it to a copy of the ring; the stream is unchanged."""
        state = self.state or self.begin_state(job.geometry)
        features = self._encode(job) if job.features is None else job.features
        ring = self.with_next(features, job.prompt)
        return PendingStep(job.geometry, state, ring, self.frame_count - self.latency)

    def commit_step(self, step: PendingStep) -> None:
        """Make a step, whose answer has been computed, the state of the stream."""
        self.state = step.state
        self.take(step.ring, step.geometry)

    def can_batch(self, prompt: Prompt[torch.Tensor] | None) -> bool:
        """Whether the next frame may be answered in a batch with other streams.

        prompt  labels [H, W] and ids of that frame, or None

        Not if a prompt is pending, there is no object or no answer yet, or the memory's policy is
        "afb" (it has no pages).
        """
        has_prompt = prompt is not None or prompted_ids(self.ring)
        return bool(
            self.method.batched
            and not has_prompt
            and len(self.slots) > 0
            and self.frame_count >= self.latency
            and not (self.memory is not None and self.memory.policy == "afb")
        )

    @own_settings()
    def flush(self) -> list[Result[torch.Tensor]]:
        """Return the results of the last `latency` frames and end the stream.

        Further `step` calls raise InputError until `reset`. Raises StateError as `step`.
        """
        with self.exclusive("flush"):
            waiting, geometry = self.waiting, self.geometry
            if geometry is None or not waiting:
                return []
            with self.precision.applied():
                results = [self._answer(self.ring, t, self.state, geometry) for t in waiting]
            self.flushed = True
            return results

    @own_settings()
    def remove(self, object_ids: int | Iterable[int]) -> None:
        """Remove one id or an iterable of ids, from the next result on; ids may be reused.

        Raises  InputError, before any change, if one of them is not alive, or the model has a
                single object that always exists; StateError as `step`.
        """
        with self.exclusive("remove"):
            for object_id in self.slots.living(object_ids):
                self.state.forget(self.slots.slot(object_id))
                self.slots.remove(object_id)

    def save_state(self, path: str | Path) -> None:
        """Write `snapshot`'s bytes to a file, atomically. Raises OutputError, StateError."""
        with self.exclusive("save_state"):
            data = pack_stream(self)
        write_whole(Path(path), data)

    def load_state(self, path: str | Path) -> None:
        """Restore the stream from a file written by `save_state`.

        Raises  StateError as `restore`, and if the file does not exist or cannot be read.
        """
        with self.exclusive("load_state"):
            restore_stream(self, read_file(Path(path)), str(path))

    def snapshot(self) -> bytes:
        """Serialise the stream to bytes, in safetensors format; the stream is unchanged.

        `restore` of a Segmenter with the same settings, in any process, continues from them.

        Raises  StateError as `step`.
        """
        with self.exclusive("snapshot"):
            return pack_stream(self)

    def restore(self, data: bytes) -> None:
        """Replace this stream with a saved one; data: the bytes that `snapshot` returned.

        Raises  InputError if `data` is not bytes; StateError if it is corrupt, or was saved with
                another model, weights, precision, size, memory or kind of proposal source. State is
                unchanged on error.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InputError(
                f"restore: wanted the bytes of snapshot(), given {type(data).__name__}; "
                "a file goes to load_state(path)"
            )
        with self.exclusive("restore"):
            restore_stream(self, bytes(data), "snapshot")

    def begin_state(self, geometry: Geometry) -> Any:
        """A new state of the method for this geometry, with memory pages of the engine."""
        return self.method.start(geometry, self.max_objects, self.memory, self.runs_on.pools)

    def prepared(self, job: Job) -> torch.Tensor:
        """Network input for a job's frame: [1, 3, H, W], at least float32; the network casts it."""
        config = self.method.config
        wide = torch.promote_types(self.dtype, torch.float32)
        return prepare(job.image, job.geometry, config.mean, config.std, wide)[None]

    def _encode(self, job: Job) -> Any:
        """The method's features of a job's frame; copied from graph outputs if kept in the ring."""
        prepared = self.prepared(job)
        with span("encode"):
            if job.proposals is None:
                features = self.runs_on.encode(prepared)
                return copied(features) if self._sees_more else features
            fitted = to_network(job.proposals, job.geometry, self.device)
            return self.method.encode(prepared, [clean(fitted, self.method.smallest_proposal)])

    @property
    def _sees_more(self) -> bool:
        """Whether an answer needs frames other than its own, which the ring holds."""
        return len(self.method.sees) > 1

    def _answer(
        self, ring: Sequence[Pending[torch.Tensor]], target: int, state: Any, geometry: Geometry
    ) -> Result[torch.Tensor]:
        """Segment, post-process and remember frame `target`."""
        view = View.of(ring, target, self.method.sees)
        seen, prompt = view.seen, view.prompt
        static = prompt is None and len(self.slots) > 0 and "answer" in self.method.capturable
        if static and self._graphs is not None and not listened():
            return self._replay(self._graphs, seen, target, state, geometry)
        segments = len(self.slots) > 0 or not self.method.needs_mask
        with span("segment"):
            scores = self.method.segment(seen, state) if segments else None
        result, masks, by_slot = finish(
            scores, prompt, self.slots, geometry, target, self.device, view.later
        )
        with span("remember"):
            self.method.remember(seen, masks, state)
        self.slots.assign(by_slot)
        return result

    def rows(self) -> ObjectRows:
        """ObjectRows of the living objects for a frame without a prompt; cached."""
        by_slot = self.slots.in_slot_order
        if self._rows is None or self._rows.by_slot != by_slot:
            self._rows = ObjectRows.of(by_slot, (), by_slot, self.device, indexed=True)
        return self._rows

    def _replay(
        self, graphs: GraphCache, seen: list[Any], target: int, state: Any, geometry: Geometry
    ) -> Result[torch.Tensor]:
        """`_answer` for a frame without prompt and discovery: one captured graph, then `commit`."""
        rows = self.rows()

        def work(inputs: tuple[list[Any], ObjectRows]) -> Any:
            seen, rows = inputs  # the ids in `rows` are the capture's: only its tables are valid
            scores = self.method.segment(seen, state)
            output, labels, masks = compose(scores, rows, None, geometry)
            return output, labels, masks, self.method.observe(seen, masks, state)

        name = "answer", state.signature()
        outputs = graphs.run(name, work, (seen, rows), shared=self._sees_more)
        output, labels, masks, observed = outputs
        self.method.commit(observed, masks, state)
        own: MaskOutput = output.copied(rows)
        return own.result(labels.clone(), target, geometry)
