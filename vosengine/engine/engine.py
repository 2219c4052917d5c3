"""Weights once, on one device, for any number of streams."""

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
from .rules import StaysHere
from .scheduler import Scheduler
from .together import answer_together

if TYPE_CHECKING:
    from .segmenter import Segmenter

MAX_BATCH = {"cpu": 1}  # a CPU gains nothing from more, and keeps its bits; a GPU takes 8


@dataclass
class Job:
    """A frame that was checked, on the device, with its prompt and its proposals, and what an
    engine has made of it.

    features  what the method encodes of it, once that is done
    tried     whether it was to be computed together with others, once
    """

    image: torch.Tensor
    geometry: Geometry
    prompt: Prompt[torch.Tensor] | None
    given: Proposals | None
    features: Any = None
    tried: bool = False


class Engine(StaysHere):
    """One model's weights on one device, and the streams that share them.

        engine = Engine("munet")
        cameras = [engine.open() for _ in range(4)]       # Segmenters
        for camera, frame, mask in first_frames:
            engine.submit(camera, frame, mask)
        while answered := engine.step():
            for camera, result in answered: ...

    Every stream is a Segmenter and may as well be stepped by itself; a Segmenter that is made
    without an engine has one of its own. One frame of a stream at most waits; which go next, and
    which of them together, is the Scheduler's. Threads that step streams of one engine take turns.

    model, weights, device, precision, config  as in Segmenter
    mode       "fast" or "eager", as Segmenter's `engine`
    max_batch  frames at most that go through the network together: of streams of one size; None: 1
               on a CPU, 8 on a GPU. With 1 every stream has the labels, to the bit, that it has by
               itself
    memory_budget  bytes that the memories of all streams may take together; a frame that needs more
               raises CapacityError. None: what the device has

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
        super().__init__("make one in each process")
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
        self._scheduler: Scheduler[Segmenter] = Scheduler(self.max_batch)
        self._jobs: dict[Segmenter, Job] = {}  # of the streams in the scheduler
        self._answered: list[tuple[Segmenter, Result[torch.Tensor] | None]] = []
        self._make_graph = None if mode == "eager" else graph_maker(self.device)
        self._encoding = self.graphs()
        self.together = self.graphs()

    def open(self, **options: Any) -> Segmenter:
        """A new stream: a Segmenter on this engine's weights. options: Segmenter's that are of a
        stream (max_objects, size, memory, online, proposals). Raises ConfigError."""
        from .segmenter import Segmenter  # which makes engines

        return Segmenter(self.model, engine=self, **options)

    def close(self, stream: Segmenter) -> None:
        """End a stream, with what of it waits, and free its memory; from then on it raises
        StateError. Closing it again does nothing. Raises StateError for another engine's."""
        self._check(stream)
        with self.lock:
            self._scheduler.drop(stream)
            self._jobs.pop(stream, None)
            stream.end()

    @property
    def waiting(self) -> int:
        """Frames that were submitted and not yet answered for."""
        return len(self._jobs)

    def waits_for(self, stream: Segmenter) -> bool:
        """Whether a frame of that stream was submitted and not yet answered for."""
        return stream in self._jobs

    def submit(self, stream: Segmenter, frame: Array, mask: Array | None = None) -> None:
        """Take the next frame of a stream, as `Segmenter.step` does, to be answered by `step`.

        Raises  InputError, as `Segmenter.step`, and StateError where a frame of the stream waits
                already, or the stream is closed or another engine's: before anything has changed.
        """
        self._check(stream)
        with self.lock:
            stream.check_free("submit")
            job = self._jobs[stream] = stream.accept(frame, mask)
            group = job.geometry, stream.memory
            self._scheduler.add(stream, group, alone=job.prompt is not None)

    def step(self) -> list[tuple[Segmenter, Result[torch.Tensor] | None]]:
        """Answer for the frames whose turn it is: each stream with what its `step` would have
        returned. Empty where no frame waits.

        Where a frame raises, as for want of memory, it is given up; where several that are computed
        together do, they wait on, and the next call computes them one by one. What was answered
        before an error, and what still waits, come with the next call."""
        with self.lock:
            streams = self._scheduler.next()
            together = [stream for stream in streams if not self._jobs[stream].tried]
            for stream in together:
                self._jobs[stream].tried = True  # where this raises, each goes by itself next time
            self._encode_together(together)
            joining = [each for each in together if each.may_join(self._jobs[each].prompt)]
            if len(joining) > 1:
                self._answer_together(joining)
            for stream in streams:
                if stream in self._jobs:
                    self._answered.append((stream, stream.advance(self._give_up(stream))))
            answered, self._answered = self._answered, []
            return answered

    def _give_up(self, stream: Segmenter) -> Job:
        """A stream's job, which waits no longer."""
        self._scheduler.drop(stream)
        return self._jobs.pop(stream)

    @own_settings()
    def _answer_together(self, streams: Sequence[Segmenter]) -> None:
        with self.precision.applied():
            turns = [(stream, stream.turn(self._jobs[stream])) for stream in streams]
            results = answer_together(self, turns)
        for (stream, turn), result in zip(turns, results, strict=True):
            self._give_up(stream)
            stream.take_turn(turn)
            self._answered.append((stream, result))

    @own_settings()
    def _encode_together(self, streams: Sequence[Segmenter]) -> None:
        """The features of several frames at once; those with proposals of their own wait for their
        stream."""
        waiting = [(stream, self._jobs[stream]) for stream in streams]
        plain = [(stream, job) for stream, job in waiting if job.given is None]
        if len(plain) < 2:
            return
        with self.precision.applied(), span("encode"):
            features = self.encode(torch.cat([stream.prepared(job) for stream, job in plain]))
        for row, (_, job) in enumerate(plain):
            job.features = copied(rows_of(features, slice(row, row + 1)))

    def encode(self, prepared: torch.Tensor) -> Any:
        """The method's features of prepared frames [B, 3, H, W]; of a graph, to be read before the
        next call."""
        if self._encoding is None or listened() or "encode" not in self.method.capturable:
            return self.method.encode(prepared)
        return self._encoding.run("encode", self.method.encode, prepared)

    def graphs(self) -> GraphCache | None:
        """Room for captured graphs; None where there are none."""
        return None if self._make_graph is None else GraphCache(self._make_graph)

    def check_shared(self, model: str, network: dict[str, Any]) -> None:
        """Raise ConfigError where a stream wants another network than this: another model, or any
        of `network`'s options, which are the engine's."""
        if model != self.model:
            raise ConfigError(f"engine: is of {self.model}, wanted one of {model}")
        for name, value in network.items():
            if value not in (None, "auto"):
                raise ConfigError(f"{name}: is the engine's; leave it out, or make another engine")

    def _check(self, stream: Segmenter) -> None:
        self.check_process()
        if stream.runs_on is not self:
            raise StateError("engine: the stream is of another engine; hand it to its own")
