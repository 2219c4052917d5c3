"""The engine: one frame in, one answer out, whatever the method behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from .postprocess import MaskOutput, ObjectRows, compose, finish, named
from .resume import go_on, packed
from .ring import Pending, View, awaited
from .snapshot import read_file
from .stream import Stream


@dataclass(frozen=True)
class Turn:
    """A stream one frame later: its geometry, state and ring, and the index of the frame that is
    answered for, below 0 where there is none yet."""

    geometry: Geometry
    state: Any
    ring: list[Pending[torch.Tensor]]
    target: int


class Segmenter(Stream[torch.Tensor]):
    """Streaming video object segmentation: one `step` a frame, memory that never grows.

        segmenter = Segmenter("munet")
        result = segmenter.step(frame, mask)      # first frame, with object ids 1..255
        result = segmenter.step(frame)            # every further one

    Models that need no mask ("imcnet", "target_aware") find their objects themselves and give them
    the smallest ids that the stream has not had.

    model        a name from `list_models()`
    weights      None for the best set that ships, a tag, or the path of a .safetensors file
    device       "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"...
    precision    "fp32", "tf32" (on a GPU), "bf16", "fp16", or "auto": bf16 where the chip has it
                 and the model's labels stay what they are in fp32, else fp32; softmax, norms and
                 odds are fp32 always
    max_objects  room for that many objects at a time; memory is allocated for all of them; None
                 takes the model's own number
    size         what the network works at, in pixels: the short side, or (height, width), to which
                 the frame is stretched, or "native", the frame's own; None takes the model's own
    memory       what the memory keeps: a MemoryConfig, or its policy alone ("every-5", "all",
                 "afb"); None takes the model's own setting
    online       a model that looks ahead answers at once, the newest frame standing in for those
                 that have not come; latency is 0
    engine       "fast", or "eager", every layer as it was written: to debug, and to compare with;
                 or an Engine, whose weights, device and precision this stream then shares
    proposals    where object proposals come from, instead of the model's own detector; a model
                 that has none and needs them asks the source of its registry entry
    config       the network's configuration; only with random weights

    The caller's torch settings (inference mode, autocast, default dtype and device) change no
    answer and stay as they are; `proposals` are asked for under them. A Segmenter is neither copied
    nor pickled (`snapshot` and `save_state` save its stream), and does not step in the child of a
    fork.

    Raises  ConfigError, DeviceError or WeightsError. Whatever `step` raises on bad input is an
            InputError, and leaves the stream as it was.
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
            "use save_state(path), or snapshot(), and load_state or restore of one made alike"
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
        self.online = online
        self.proposals = proposals
        self._ended = False
        self._state: Any = None
        self.reset()

    @property
    def method(self) -> Any:
        """The network, which the engine's other streams share."""
        return self.runs_on.method

    @property
    def traits(self) -> Any:
        return self.method

    @property
    def memory_bytes(self) -> int:
        """Bytes on the device that its memory may come to take; 0 before its first frame."""
        return 0 if self._state is None else int(self._state.nbytes)

    def reset(self) -> None:
        """Forget the stream: the next frame is the first of a new one, of any size."""
        self.check_free("reset")
        if self._state is not None:
            self._state.release()
        self.begin()
        self._state = None
        self._rows: ObjectRows | None = None  # of the objects alive, for steps without prompt
        self._graphs = self.runs_on.graphs()

    @spanned("step")
    def step(self, frame: Array, mask: Array | None = None) -> Result[torch.Tensor] | None:
        """Take one frame and answer for the one that lies `latency` frames back.

        frame  [H, W, 3] RGB, uint8 or float32 in 0..1, numpy or torch, on any device
        mask   [H, W] object ids in 1..255, 0 where it says nothing: starts the objects it names, or
               corrects those that exist; all 0 is no mask; an error for a model that takes none.
               Or [O, H, W], a plane for each of the objects 1..O: float32 in 0..1, where the
               greatest counts if it is above 0.5, or uint8 or bool, 1 where the object is
        returns  the Result, or None for the first `latency` frames of a stream

        Raises  InputError, before anything has changed; StateError in the child of a fork, and
                while a frame of this stream waits in its engine.
        """
        self.check_process()  # in the child of a fork nobody would let go of the lock
        with self.runs_on.lock:
            self.check_free("step")
            return self.advance(self.accept(frame, mask))

    def check_free(self, verb: str) -> None:
        """Raise StateError unless the stream may go on: in the process that made it, not closed,
        and with no frame that waits in its engine."""
        self.check_process()
        if self._ended:
            raise StateError(f"{verb}: the stream is closed; open another")
        if self.runs_on.waits_for(self):
            raise StateError(
                f"{verb}: a frame of this stream waits; call the engine's step() first"
            )

    def end(self) -> None:
        """Let go of everything: what `Engine.close` does to a stream of which no frame waits."""
        if not self._ended:
            self.reset()
            self._ended = True

    def accept(self, frame: Array, mask: Array | None) -> Job:
        """`step`'s arguments, checked and on the device, and what the source of proposals says of
        the frame; of the stream nothing has changed. Raises InputError."""
        with own_settings():
            image = check_frame(frame)
            size = (image.shape[0], image.shape[1])
            prompt = None if mask is None else named(check_mask(mask, size), self.device)
            prompt = self.check_next(size, prompt)
            image = self._upload(image)
        given = None
        if self.proposals is not None:
            # The source is the caller's, and so are all other settings.
            with torch.no_grad(), span("proposals"):
                given = self.proposals(image, self.frame_count)
        with own_settings():
            if self.proposals is not None:
                check_proposals(given, size)
        geometry = self.geometry or Geometry.fit(size, size=self.size, multiple=self.method.stride)
        return Job(image, geometry, prompt, given)

    @own_settings()
    def advance(self, job: Job) -> Result[torch.Tensor] | None:
        """`step`, of a frame that was accepted."""
        with self.precision.applied():
            turn = self.turn(job)
            result = None
            if turn.target >= 0:
                result = self._answer(turn.ring, turn.target, turn.state, turn.geometry)
        self.take_turn(turn)
        return result

    def turn(self, job: Job) -> Turn:
        """What an accepted frame makes of the stream: all is new, the stream is as it was."""
        state = self._state or self.begin_state(job.geometry)
        features = self._encode(job) if job.features is None else job.features
        ring = self.with_next(features, job.prompt)
        return Turn(job.geometry, state, ring, self.frame_count - self.latency)

    def take_turn(self, turn: Turn) -> None:
        """Go on to the next frame, after the turn's answer."""
        self._state = turn.state
        self.take(turn.ring, turn.geometry)

    def may_join(self, prompt: Prompt[torch.Tensor] | None) -> bool:
        """Whether the next frame, with that prompt, may be answered for together with other
        streams': nothing begins with it, and the memory is one that is read in common."""
        awaits_prompt = prompt is not None or awaited(self.ring)
        return bool(
            self.method.batched
            and not awaits_prompt
            and len(self.slots) > 0
            and self.frame_count >= self.latency
            and not (self.memory is not None and self.memory.policy == "afb")
        )

    @own_settings()
    def flush(self) -> list[Result[torch.Tensor]]:
        """Answer for the last `latency` frames; afterwards the stream takes no more of them."""
        self.check_process()
        with self.runs_on.lock:
            self.check_free("flush")
            waiting, geometry = self.waiting, self.geometry
            if geometry is None or not waiting:
                return []
            with self.precision.applied():
                results = [self._answer(self.ring, t, self._state, geometry) for t in waiting]
            self.flushed = True
            return results

    @own_settings()
    def remove(self, object_ids: int | Iterable[int]) -> None:
        """Forget an object or several, from the next answer on; their ids may be used anew.

        object_ids  an id, or any number of them; all go or, after an error, none

        Raises  InputError, before anything has changed, if one of them is not alive, and for a
                model whose one object always exists.
        """
        self.check_free("remove")
        for object_id in self.slots.living(object_ids):
            self._state.forget(self.slots.slot(object_id))
            self.slots.remove(object_id)

    def save_state(self, path: str | Path) -> None:
        """Write `snapshot`'s bytes to a file, which appears whole or not at all. Raises OutputError
        where it cannot be written."""
        self.check_free("save_state")
        write_whole(Path(path), packed(self))

    def load_state(self, path: str | Path) -> None:
        """`restore`, of a file that `save_state` wrote. Raises StateError as well where there is no
        such file."""
        self.check_free("load_state")
        go_on(self, read_file(Path(path)), str(path))

    def snapshot(self) -> bytes:
        """The stream as bytes: `restore` of a Segmenter made alike, in this process or another,
        goes on with it as if it had never stopped, as often as it is asked. The stream itself goes
        on too."""
        self.check_free("snapshot")
        return packed(self)

    def restore(self, data: bytes) -> None:
        """Go on with a stream that was saved, in place of this one.

        data  what `snapshot` gave

        Raises  InputError for what is no bytes, and StateError, before anything has changed:
                damaged, or a stream of another model, weights, precision, size or memory, or with
                another kind of proposals.
        """
        self.check_free("restore")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InputError(
                f"restore: wanted the bytes of snapshot(), given {type(data).__name__}; "
                "a file goes to load_state(path)"
            )
        go_on(self, bytes(data), "snapshot")

    def begin_state(self, geometry: Geometry) -> Any:
        """The method's state for a stream of this geometry, with pages of the engine."""
        return self.method.start(geometry, self.max_objects, self.memory, self.runs_on.pools)

    def prepared(self, job: Job) -> torch.Tensor:
        """A frame as the network sees it: [1, 3, H, W], float32 at least, which a network narrows
        where it wants."""
        config = self.method.config
        wide = torch.promote_types(self.dtype, torch.float32)
        return prepare(job.image, job.geometry, config.mean, config.std, wide)[None]

    def _encode(self, job: Job) -> Any:
        """The method's features of a frame, with the source's proposals for it if there is one; of
        a graph a copy, where they are kept."""
        prepared = self.prepared(job)
        with span("encode"):
            if job.given is None:
                features = self.runs_on.encode(prepared)
                return copied(features) if self._sees_more else features
            fitted = to_network(job.given, job.geometry, self.device)
            return self.method.encode(prepared, [clean(fitted, self.method.smallest_proposal)])

    @property
    def _sees_more(self) -> bool:
        """Whether an answer needs other frames than its own, which are held in the ring."""
        return len(self.method.sees) > 1

    def _answer(
        self, ring: Sequence[Pending[torch.Tensor]], target: int, state: Any, geometry: Geometry
    ) -> Result[torch.Tensor]:
        """Segment, finish, remember: for the frame with that index."""
        view = View.of(ring, target, self.method.sees)
        seen, prompt = view.seen, view.prompt
        decided = prompt is None and len(self.slots) > 0 and "answer" in self.method.capturable
        if decided and self._graphs is not None and not listened():
            return self._replay(self._graphs, seen, target, state, geometry)
        looks = len(self.slots) > 0 or not self.method.needs_mask
        with span("segment"):
            scores = self.method.segment(seen, state) if looks else None
        result, masks, by_slot = finish(
            scores, prompt, self.slots, geometry, target, self.device, view.later
        )
        with span("remember"):
            self.method.remember(seen, masks, state)
        self.slots.assign(by_slot)
        return result

    def rows(self) -> ObjectRows:
        """Of the objects alive, where none begins."""
        by_slot = self.slots.in_slot_order
        if self._rows is None or self._rows.by_slot != by_slot:
            self._rows = ObjectRows.of(by_slot, (), by_slot, self.device, indexed=True)
        return self._rows

    def _replay(
        self, graphs: GraphCache, seen: list[Any], target: int, state: Any, geometry: Geometry
    ) -> Result[torch.Tensor]:
        """`_answer` for a frame without a prompt, in which the method discovers nothing: all but
        the writing is one captured graph."""
        rows = self.rows()

        def work(given: tuple[list[Any], ObjectRows]) -> Any:
            seen, rows = given  # whose ids are those of the capture: only its tables count
            scores = self.method.segment(seen, state)
            output, labels, masks = compose(scores, rows, None, geometry)
            return output, labels, masks, self.method.observe(seen, masks, state)

        name = "answer", state.signature()
        found = graphs.run(name, work, (seen, rows), shared=self._sees_more)
        output, labels, masks, observed = found
        self.method.commit(observed, masks, state)
        kept: MaskOutput = output.copied(rows)
        return kept.result(labels.clone(), target, geometry)
