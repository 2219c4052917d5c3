"""One client's stream: what it has sent, what is under way, and what came of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import InputError, OutputError, StateError, VosError
from .metrics import Metrics
from .outcomes import Answered, Dropped, Failed, Held, Outcome, Outcomes
from .protocol import REPLIES, TAKEN_OVER, encode_masks, text
from .settings import Settings
from .store import Saved, Store
from .worker import STEP_ERRORS, Frame, StepFailed, Stepped, Turn, Worker

if TYPE_CHECKING:
    from ..segmenter import Segmenter

log = logging.getLogger("vosengine.server")
KEPT_BEYOND_WINDOW = 4  # outcomes


@dataclass(frozen=True)
class Shared:
    """What all sessions of a server use.

    pool   threads that decode and encode
    disk   the one thread that reads and writes saved streams
    admit  asked before a session's stream comes back into memory; raises Full
    """

    settings: Settings
    worker: Worker
    metrics: Metrics
    store: Store
    pool: Executor
    disk: Executor
    admit: Callable[[Session], Awaitable[None]]


class Listener(Protocol):
    """Whoever hears of a session's outcomes: its connection."""

    def send(self, message: bytes | str) -> None: ...

    def finish(self, reason: str, code: int) -> None: ...


@dataclass(frozen=True)
class Control:
    """Work on the stream that waits for the frames before it."""

    work: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any] = field(repr=False)


class Session:
    """A stream and its client. All of it is used on the event loop alone.

    A task of its own takes frames and controls one after another, in the order in which they came,
    and has at most one of them with the engine.

    saved   the session as it is on disk, or as it begins
    stream  None while it is parked
    """

    def __init__(self, shared: Shared, saved: Saved, stream: Segmenter | None) -> None:
        self._shared = shared
        self.id, self.owner, self.tokens = saved.id, saved.owner, list(saved.tokens)
        self.policy, self.reply, self.options = saved.policy, saved.reply, saved.options
        self.stream = stream
        self.expected = saved.next_frame  # the id of the next frame to come
        self.ids, self.size = list(saved.ids), saved.size
        self.frames, self.dropped = saved.frames, saved.dropped
        self.memory_bytes = 0
        self.outcomes = Outcomes(shared.settings.window + KEPT_BEYOND_WINDOW)
        self.outcomes.restore(saved.answers)
        self._indices = {index: frame_id for index, frame_id in saved.indices}
        self._outstanding: set[int] = set()  # taken, without an outcome
        self._inbox: deque[Frame | Control] = deque()
        self._turn: Turn | None = None
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._retiring = False
        self._saving: asyncio.Future[None] | None = None
        self.listener: Listener | None = None
        self._asked: dict[int, asyncio.Future[Outcome]] = {}
        self.used = time.monotonic()  # when a frame last came
        self._task = asyncio.get_running_loop().create_task(self._work_off())

    @property
    def state(self) -> str:
        """live (connected), idle (nobody is) or parked (on disk)."""
        if self.stream is None:
            return "parked"
        return "idle" if self.listener is None else "live"

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._inbox or self._outstanding or self._turn)

    def describe(self) -> dict[str, Any]:
        """What GET /v1/sessions/{id} answers."""
        return {
            "id": self.id,
            "state": self.state,
            "model": self._shared.settings.model,
            "policy": self.policy,
            "reply": self.reply,
            "next_frame": self.expected,
            "ids": self.ids,
            "frames": self.frames,
            "dropped": self.dropped,
            "memory_bytes": self.memory_bytes,
        }

    def hello(self) -> str:
        """What a connection is told first."""
        return text(
            "hello",
            session=self.id,
            next_frame=self.expected,
            window=self._shared.settings.window,
            ids=self.ids,
            size=self.size,
            policy=self.policy,
            reply=self.reply,
        )

    def attach(self, listener: Listener) -> None:
        """Speak to this connection from now on, and to no earlier one."""
        if self.listener is not None:
            self.listener.finish("taken over", TAKEN_OVER)
        self.listener = listener
        self.used = time.monotonic()
        listener.send(self.hello())

    def detach(self, listener: Listener) -> None:
        if self.listener is listener:
            self.listener = None

    # Frames.

    def repeat(self, frame_id: int) -> Outcome | None:
        """The outcome of a frame that is sent again; None where that is still to come. Raises
        InputError for a frame whose turn it is not."""
        if frame_id in self._outstanding:
            return None
        outcome = self.outcomes.get(frame_id)
        if outcome is None:
            raise InputError(
                f"frame: has id {frame_id}; wanted {self.expected}, the next frame's, or one of "
                "the last few again"
            )
        return outcome

    def put(self, frame: Frame) -> None:
        """Take the next frame, whose id is `expected`."""
        if self._retiring:
            return  # as if it had not come
        self.expected += 1
        self.used = time.monotonic()
        self._outstanding.add(frame.id)
        self._inbox.append(frame)
        if self.policy == "latest":
            self._drop_older(frame)
        self._wake.set()

    def refuse(self, frame_id: int, code: str, why: str) -> None:
        """The next frame came, and cannot be used."""
        self.expected += 1
        self.used = time.monotonic()
        self._record(Failed(frame_id, code, why))

    async def ask(self, frame: Frame) -> Outcome:
        """Take the next frame and wait for what comes of it."""
        asked = self._asked[frame.id] = asyncio.get_running_loop().create_future()
        try:
            self.put(frame)
            return await asked
        finally:
            self._asked.pop(frame.id, None)

    async def room(self) -> None:
        """Wait until another frame may come: with "all", while the window is full; with "latest",
        where older frames make room for newer ones, while frames with masks fill it."""
        most = self._shared.settings.window + (2 if self.policy == "latest" else 0)
        while len(self._outstanding) >= most:
            self._room.clear()
            await self._room.wait()

    def _drop_older(self, newest: Frame) -> None:
        """Of the frames that wait, give up the oldest without a mask that has a newer one."""
        turn = self._turn
        first = None if turn is None else turn.waits
        waiting = [item for item in self._inbox if isinstance(item, Frame)]
        if turn is not None and first is not None and first.mask is None:
            if turn.exchange(waiting[0]):
                self._inbox.remove(waiting[0])
                self._record(Dropped(first.id))
                return
        for frame in waiting:
            if frame is not newest and frame.mask is None:
                self._inbox.remove(frame)
                self._record(Dropped(frame.id))
                return

    def _record(self, outcome: Outcome) -> None:
        frame_id = outcome.frame_id
        self.outcomes.add(outcome)
        self._outstanding.discard(frame_id)
        self._room.set()
        kind = type(outcome).__name__.lower()
        self._shared.metrics.frames.labels(kind).inc()
        if isinstance(outcome, Dropped):
            self.dropped += 1
            self._shared.metrics.dropped.inc()
        if self.listener is not None:
            self.listener.send(outcome.message())
        asked = self._asked.get(frame_id)
        if asked is not None and not asked.done():
            asked.set_result(outcome)

    # Controls.

    async def control(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do something with the stream after the frames that came before. Raises what it raises."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inbox.append(Control(work, done))
        self._wake.set()
        return await done

    async def remove(self, object_id: int) -> list[int]:
        """Forget an object; the ids that are left. Raises InputError where it is not alive."""

        async def work() -> list[int]:
            stream = await self._awake()
            await self._call(lambda: stream.remove(object_id))
            self.ids = list(stream.ids)
            return self.ids

        found: list[int] = await self.control(work)
        return found

    async def reset(self) -> None:
        """Begin a new stream; its frames count from 0."""

        async def work() -> None:
            if self.stream is None:
                await self._shared.admit(self)
                engine, options = self._shared.worker.engine, self.options
                self.stream = await self._call(lambda: engine.open(**options))
            await self._call(self.stream.reset)
            self.outcomes.clear()
            self._indices.clear()
            self.expected, self.ids, self.size, self.memory_bytes = 0, [], None, 0

        await self.control(work)

    async def flush(self) -> None:
        """Answer for the frames whose answers are still to come."""

        async def work() -> None:
            stream = await self._awake()
            results = await self._call(lambda: [(r, r.numpy()) for r in stream.flush()])
            for result, labels in results:
                await self._answer(Stepped(None, result, labels))

        await self.control(work)

    async def park(self) -> None:
        """Save the stream and let go of its memory, if nothing is under way."""

        async def work() -> None:
            stream = self.stream
            if stream is None or any(isinstance(item, Frame) for item in self._inbox):
                return
            engine = self._shared.worker.engine
            data = await self._snapshot(stream)
            await self._save(self._saved(), data)
            await self._call(lambda: engine.close(stream))
            self.stream, self.memory_bytes = None, 0

        await self.control(work)

    async def retire(self, *, save: bool) -> None:
        """Finish the frame that is begun, forget those that are not, and save the stream."""
        self._retiring = True
        gone = [item for item in self._inbox if isinstance(item, Frame)]
        for frame in gone:
            self._inbox.remove(frame)
        waits = None if self._turn is None else self._turn.waits
        if self._turn is not None and waits is not None and self._turn.exchange(None):
            gone.append(waits)
        self._outstanding -= {frame.id for frame in gone}
        self.expected = min((frame.id for frame in gone), default=self.expected)

        async def work() -> None:
            if save and self.stream is not None:
                data = await self._snapshot(self.stream)
                await self._save(self._saved(), data)

        await self.control(work)

    async def awake(self) -> None:
        """See that the stream is in memory. Raises StateError where it cannot go on here, Full
        where there is no room."""
        await self.control(self._awake)

    async def end(self, reason: str, code: int) -> None:
        """Let go of the stream, on disk too; the session is not used again."""
        self._stop(reason, code)
        await self._in(self._shared.disk, self._shared.store.remove, self.id)
        stream, engine = self.stream, self._shared.worker.engine
        if stream is not None:
            self.stream = None
            await self._call(lambda: engine.close(stream))

    def leave(self, reason: str, code: int) -> None:
        """End with the server: what is saved stays."""
        self._stop(reason, code)

    def _stop(self, reason: str, code: int) -> None:
        self._task.cancel()
        for item in self._inbox:
            if isinstance(item, Control):
                _ended(item)
        self._inbox.clear()
        for asked in self._asked.values():
            asked.cancel()
        if self.listener is not None:
            self.listener.finish(reason, code)

    # The task.

    async def _work_off(self) -> None:
        while True:
            while not self._inbox:
                self._wake.clear()
                await self._wake.wait()
            item = self._inbox.popleft()
            if isinstance(item, Frame):
                await self._step(item)
            elif not item.done.done():
                await self._do(item)

    async def _do(self, control: Control) -> None:
        try:
            found = await control.work()
        except asyncio.CancelledError:
            _ended(control)
            raise
        except STEP_ERRORS as error:
            if not control.done.done():
                control.done.set_exception(error)
        else:
            if not control.done.done():
                control.done.set_result(found)

    async def _step(self, frame: Frame) -> None:
        try:
            stream = await self._awake()
        except STEP_ERRORS as error:
            self._record(_failed(frame.id, error))
            return
        index = stream.frame_count
        self._turn = Turn(stream, frame)
        try:
            stepped = await asyncio.wrap_future(self._shared.worker.step(self._turn))
        except StepFailed as failed:
            self._record(_failed(failed.frame.id, failed.__cause__))
            return
        finally:
            self._turn = None
        if stepped.frame is None:
            return
        self.frames += 1
        self.size = list(stepped.frame.image.shape[:2])
        self.memory_bytes = self.memory_bytes or stream.memory_bytes
        self._indices[index] = stepped.frame.id
        if stepped.result is None:
            self._record(Held(stepped.frame.id))
        else:
            await self._answer(stepped)
        await self._autosave(stream)

    async def _answer(self, stepped: Stepped) -> None:
        result, labels, reply = stepped.result, stepped.labels, self.reply
        assert result is not None and labels is not None
        self.ids = list(result.ids)
        encode = encode_masks if reply in REPLIES else _as_they_are
        masks = await self._in(self._shared.pool, encode, labels, result.ids, reply)
        info = {
            "ids": self.ids,
            "queue_ms": round(stepped.queue_ms, 3),
            "step_ms": round(stepped.step_ms, 3),
        }
        self._record(Answered(self._indices.pop(result.frame_index), reply, masks, info))

    # Memory and disk.

    async def _awake(self) -> Segmenter:
        """The stream, fetched from disk if it is parked."""
        if self.stream is None:
            await self._shared.admit(self)
            _, data = await self._in(self._shared.disk, self._shared.store.load, self.id)
            engine, options = self._shared.worker.engine, self.options

            def restored() -> Segmenter:
                stream = engine.open(**options)
                stream.restore(data)
                return stream

            self.stream = await self._call(restored)
            self.memory_bytes = self.stream.memory_bytes
        return self.stream

    async def _autosave(self, stream: Segmenter) -> None:
        every = self._shared.settings.autosave
        if not every or self.frames % every or (self._saving and not self._saving.done()):
            return
        data = await self._snapshot(stream)
        self._saving = asyncio.ensure_future(self._try_to_save(self._saved(), data))

    async def _try_to_save(self, saved: Saved, data: bytes) -> None:
        try:
            await self._save(saved, data)
        except OutputError as error:
            log.error("a stream could not be saved: %s", error)

    async def _snapshot(self, stream: Segmenter) -> bytes:
        return await self._call(stream.snapshot)

    async def _save(self, saved: Saved, data: bytes) -> None:
        start = time.perf_counter()
        try:
            await self._in(self._shared.disk, self._shared.store.save, saved, data)
        except OutputError:
            self._shared.metrics.failed_snapshots.inc()
            raise
        self._shared.metrics.snapshot_seconds.observe(time.perf_counter() - start)

    def _saved(self) -> Saved:
        """The session as it goes to disk: without the frames that are not begun."""
        waiting = [item.id for item in self._inbox if isinstance(item, Frame)]
        return Saved(
            id=self.id,
            model=self._shared.settings.model,
            owner=self.owner,
            tokens=self.tokens,
            policy=self.policy,
            reply=self.reply,
            options=self.options,
            next_frame=min(waiting, default=self.expected),
            ids=self.ids,
            frames=self.frames,
            dropped=self.dropped,
            size=self.size,
            indices=[[index, frame_id] for index, frame_id in self._indices.items()],
            answers=self.outcomes.answers(),
        )

    async def _call(self, work: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._shared.worker.call(work))

    @staticmethod
    async def _in(executor: Executor, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, work, *given)


def _as_they_are(labels: np.ndarray, ids: tuple[int, ...], reply: str) -> bytes:
    """Labels for one who asks in this process."""
    return labels.tobytes()


def _ended(control: Control) -> None:
    """Tell whoever waits for a control that it will not come."""
    if not control.done.done():
        control.done.set_exception(StateError("session: has ended; make another"))


def _failed(frame_id: int, error: BaseException | None) -> Failed:
    """An error as its frame's outcome; only what is said on purpose is passed on."""
    if isinstance(error, VosError):
        code = "bad_frame" if isinstance(error, InputError) else "unavailable"
        return Failed(frame_id, code, str(error))
    log.error("a step failed", exc_info=error)
    kind = type(error).__name__
    return Failed(
        frame_id, "step_failed", f"step: failed ({kind}); the frame changed nothing, send a new one"
    )
