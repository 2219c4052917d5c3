"""Engine: one model's weights on one device, shared by any number of streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch

from ..ambient import own_settings
from ..config import ModelConfig
from ..device import choose_device
from ..errors import ConfigError, StateError
from ..frames import Array
from ..kernels.spans import listened, span
from ..memory import PagePools
from ..models.method import rows_of
from ..proposals import Proposals
from ..runtime import (
    ENGINES,
    GraphCache,
    Precision,
    copied,
    graph_maker,
    prepare_network,
)
from ..types import Geometry, Prompt, Result
from ..zoo.registry import entry
from ..zoo.weights import load
from .rules import ProcessBound
from .scheduler import next_batch
from .together import answer_together

if TYPE_CHECKING:
    from .segmenter import Segmenter

MAX_BATCH = {"cpu": 1}  # batching gains nothing on a CPU and changes bits; GPUs default to 8


@dataclass
class Job:
    """A checked frame on the device, waiting to be answered for.

    image      [H, W, 3] uint8 or float32
    geometry   of the stream
    prompt     the caller's mask, or None
    proposals  of the stream's proposal source, or None
    features   the method's features, once encoded
    attempted  whether batched computation was attempted for this frame
    """

    image: torch.Tensor
    geometry: Geometry
    prompt: Prompt[torch.Tensor] | None
    proposals: Proposals | None
    features: Any = None
    attempted: bool = False


class Engine(ProcessBound):
    """One model's weights on one device, and the streams that share them.

        engine = Engine("munet")
        cameras = [engine.open() for _ in range(4)]       # Segmenters
        for camera, frame, mask in first_frames:
            engine.submit(camera, frame, mask)
        while answered := engine.step():
            for camera, result in answered: ...

    Streams are Segmenters and may also be stepped directly; a Segmenter created without an engine
    creates its own. At most one frame per stream is pending; the oldest runs next, in a batch
    with others that can share it. Calls of an engine's streams are serialised across threads.

    model, weights, device, precision, config  as in Segmenter
    mode           "fast" or "eager", as Segmenter's `engine`
    max_batch      maximum number of frames per batch, from streams of equal size; None: 1 on a
                   CPU, 8 on a GPU. With 1, labels are bit-identical to those of a stream alone
    memory_budget  maximum bytes of all streams' memories; a frame that needs more raises
                   CapacityError. None: limited by the device only

    Raises  ConfigError, DeviceError or WeightsError.
    """

    @own_settings()
    def __init__(
        self,
        model: str,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        mode: str = "fast",
        config: ModelConfig | None = None,
        max_batch: int | None = None,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__("create one in each process")
        if mode not in ENGINES:
            raise ConfigError(f"engine: wanted {' or '.join(ENGINES)}, given {mode!r}")
        if max_batch is not None and max_batch < 1:
            raise ConfigError(f"max_batch: wanted 1 or more, given {max_batch}")
        if memory_budget is not None and memory_budget < 1:
            raise ConfigError(f"memory_budget: wanted 1 byte or more, given {memory_budget}")
        kind = entry(model).build
        self.model, self.mode = model, mode
        self.device = choose_device(device)
        if precision == "auto" and not kind.bf16_safe:
            precision = "fp32"
        self.precision = Precision.choose(precision, self.device)
        self.dtype = self.precision.dtype
        method, self.card = load(model, weights, config)
        self.method = prepare_network(method, self.device, self.dtype, mode)
        self.max_batch = max_batch or MAX_BATCH.get(self.device.type, 8)
        self.pools = PagePools(memory_budget)
        self.lock = RLock()
        self._jobs: dict[Segmenter, Job] = {}  # pending frames, in order of arrival
        self._answered: list[tuple[Segmenter, Result[torch.Tensor] | None]] = []
        self._make_graph = None if mode == "eager" else graph_maker(self.device)
        self._encoding = self.graphs()
        self.together = self.graphs()

    def open(self, **options: Any) -> Segmenter:
        """Create a stream: a Segmenter on this engine's weights.

        options  Segmenter's stream options: max_objects, size, memory, online, proposals

        Raises  ConfigError.
        """
        from .segmenter import Segmenter  # circular import

        return Segmenter(self.model, engine=self, **options)

    def close(self, stream: Segmenter) -> None:
        """Close a stream: discard its pending frame and free its memory.

        A closed stream raises StateError when used; closing it again has no effect.

        Raises  StateError for another engine's stream.
        """
        self._check(stream)
        with self.lock:
            self._jobs.pop(stream, None)
            stream.end()

    @property
    def waiting(self) -> int:
        """Number of frames submitted and not yet answered for."""
        return len(self._jobs)

    def waits_for(self, stream: Segmenter) -> bool:
        """Whether a frame of the stream was submitted and not yet answered for."""
        return stream in self._jobs

    def submit(self, stream: Segmenter, frame: Array, mask: Array | None = None) -> None:
        """Queue the next frame of a stream, to be answered by `step`.

        frame  [H, W, 3] RGB, as in `Segmenter.step`
        mask   [H, W] or [O, H, W], as there, or None

        Raises  InputError as `Segmenter.step`; StateError if a frame of the stream is pending, or
                the stream is closed or belongs to another engine. State is unchanged on error.
        """
        self._check(stream)
        with stream.exclusive("submit"):
            self._jobs[stream] = stream.make_job(frame, mask)

    def step(self) -> list[tuple[Segmenter, Result[torch.Tensor] | None]]:
        """Compute the next batch of pending frames.

        Returns  (stream, what its `Segmenter.step` would have returned) per frame; empty if no
                 frame is pending

        If a frame alone raises (for example CapacityError), it is discarded. If a batch raises,
        its frames stay pending and the next call computes them one by one. Results computed before
        an error are returned by the next call. In a forked child it raises StateError.
        """
        self.check_process()  # there the lock may never be released
        with self.lock:
            keys = {
                stream: None if job.prompt is not None else (job.geometry, stream.memory)
                for stream, job in self._jobs.items()
            }
            streams = next_batch(keys, self.max_batch)
            batch = [stream for stream in streams if not self._jobs[stream].attempted]
            for stream in batch:
                self._jobs[stream].attempted = True  # after an error each frame runs alone
            self._encode_together(batch)
            joining = [stream for stream in batch if stream.can_batch(self._jobs[stream].prompt)]
            if len(joining) > 1:
                self._answer_together(joining)
            for stream in streams:
                if stream in self._jobs:
                    self._answered.append((stream, stream.run_job(self._jobs.pop(stream))))
            answered, self._answered = self._answered, []
            return answered

    @own_settings()
    def _answer_together(self, streams: Sequence[Segmenter]) -> None:
        with self.precision.applied():
            steps = [(stream, stream.prepare_step(self._jobs[stream])) for stream in streams]
            results = answer_together(self, steps)
        for (stream, step), result in zip(steps, results, strict=True):
            del self._jobs[stream]
            stream.commit_step(step)
            self._answered.append((stream, result))

    @own_settings()
    def _encode_together(self, streams: Sequence[Segmenter]) -> None:
        """Encode several frames in one batch; frames with proposals are encoded by their stream."""
        jobs = [(stream, self._jobs[stream]) for stream in streams]
        plain = [(stream, job) for stream, job in jobs if job.proposals is None]
        if len(plain) < 2:
            return
        with self.precision.applied(), span("encode"):
            features = self.encode(torch.cat([stream.prepared(job) for stream, job in plain]))
        for row, (_, job) in enumerate(plain):
            job.features = copied(rows_of(features, slice(row, row + 1)))

    def encode(self, prepared: torch.Tensor) -> Any:
        """The method's features; the output of a captured graph is overwritten by the next call.

        prepared  [B, 3, H, W] frames as `Segmenter.prepared` returns them
        """
        if self._encoding is None or listened() or "encode" not in self.method.capturable:
            return self.method.encode(prepared)
        return self._encoding.run("encode", self.method.encode, prepared)

    def graphs(self) -> GraphCache | None:
        """A new cache of captured graphs; None if graphs are not used."""
        return None if self._make_graph is None else GraphCache(self._make_graph)

    def check_shared(self, model: str, network: dict[str, Any]) -> None:
        """Raise ConfigError if a stream asks for another model or sets any of `network`'s options,
        which belong to the engine."""
        if model != self.model:
            raise ConfigError(
                f"engine: is of {self.model}, wanted one of {model}; make an engine of that model"
            )
        for name, value in network.items():
            if value not in (None, "auto"):
                raise ConfigError(f"{name}: is the engine's; leave it out, or make another engine")

    def _check(self, stream: Segmenter) -> None:
        self.check_process()
        if stream.runs_on is not self:
            raise StateError("engine: the stream belongs to another engine; pass it to its own")
