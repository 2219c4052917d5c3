"""Session of one client: queue of frames and controls, step in progress, outcomes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import CapacityError, InputError, StateError
from .outcomes import Answered, Dropped, Failed, Held, Outcome, Outcomes, encoded
from .protocol import INTERNAL_ERROR, TAKEN_OVER, text
from .resident import Resident, Shared
from .store import Saved
from .worker import STEP_ERRORS, Frame, StepFailed, Stepped, Turn

if TYPE_CHECKING:
    from ..engine.segmenter import Segmenter
    from .connection import Connection

T = TypeVar("T")
log = logging.getLogger("vosengine.server")
KEPT_BEYOND_WINDOW = 4  # outcomes
ENDED = "session: has ended; create a new one"


@dataclass(frozen=True)
class Control:
    """Operation on the stream, run after the frames queued before it."""

    work: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]


class Session:
    """A stream and its client. Used on the event loop only.

    A task of the session processes frames and controls one at a time, in order of arrival; at most
    one of them is with the engine.

    saved   the session's saved or initial state
    stream  None while it is parked
    """

    def __init__(self, shared: Shared, saved: Saved, stream: Segmenter | None) -> None:
        self._shared = shared
        self.id, self.owner, self.tokens = saved.id, saved.owner, list(saved.tokens)
        self.policy, self.reply, self.options = saved.policy, saved.reply, saved.options
        self.home = Resident(shared, saved.id, saved.options, stream)
        self.expected = saved.next_frame  # id of the next frame
        self.ids, self.size = list(saved.ids), saved.size
        self.frames, self.dropped = saved.frames, saved.dropped
        self.outcomes = Outcomes(shared.settings.window + KEPT_BEYOND_WINDOW)
        self.outcomes.restore(saved.answers)
        self._indices: dict[int, int] = dict(saved.indices)  # engine frame index -> client frame id
        self._outstanding: set[int] = set()  # accepted, without an outcome
        self._inbox: deque[Frame | Control] = deque()
        self._turn: Turn | None = None
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self.retiring = False  # no more frames are accepted
        self.listener: Connection | None = None
        self._requests: dict[int, asyncio.Future[list[Outcome]]] = {}
        self._settled: list[Outcome] = []  # outcomes of the step in progress
        self.used = time.monotonic()  # time of the last frame
        self._task = asyncio.get_running_loop().create_task(self._work_off())
        self._task.add_done_callback(self._died)

    @property
    def state(self) -> str:
        """State: live (a client is connected), idle (none is) or parked (on disk)."""
        if self.home.stream is None:
            return "parked"
        return "idle" if self.listener is None else "live"

    @property
    def busy(self) -> bool:
        """Whether a frame or control is queued or in progress."""
        return bool(self._inbox or self._outstanding or self._turn)

    def hello(self) -> str:
        """Build the first message to a connection."""
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

    def attach(self, listener: Connection) -> None:
        """Send messages to this connection from now on; close an earlier one."""
        if self.listener is not None:
            self.listener.finish("taken over", TAKEN_OVER)
        self.listener = listener
        self.used = time.monotonic()
        listener.send(self.hello())

    def detach(self, listener: Connection) -> None:
        if self.listener is listener:
            self.listener = None

    # Frames.

    def repeat(self, frame_id: int) -> Outcome | None:
        """Return the outcome of a frame that is sent again, None while it is in progress. Raises
        InputError for an id out of order."""
        if frame_id in self._outstanding:
            return None
        outcome = self.outcomes.get(frame_id)
        if outcome is None:
            raise InputError(
                f"frame: wanted id {self.expected} (the next) or one of the last few again, "
                f"given {frame_id}"
            )
        return outcome

    def put(self, frame: Frame) -> None:
        """Queue the next frame, whose id is `expected`."""
        if self.retiring:
            return  # ignored: the client sends it to the next server
        self.expected += 1
        self.used = time.monotonic()
        self._outstanding.add(frame.id)
        self._inbox.append(frame)
        if self.policy == "latest":
            self._drop_older(frame)
        self._wake.set()

    def refuse(self, frame_id: int, code: str, why: str) -> None:
        """Record the next frame as failed: it was received but cannot be used."""
        self.expected += 1
        self.used = time.monotonic()
        self._record(Failed(frame_id, code, why))

    async def ask(self, frame: Frame) -> list[Outcome]:
        """Queue the next frame and wait for its step; return the new outcomes: of this frame and
        of an earlier held one. Raises StateError if the session ends first."""
        request = self._requests[frame.id] = asyncio.get_running_loop().create_future()
        try:
            self.put(frame)
            settled: list[Outcome] = await request
            return settled
        finally:
            self._requests.pop(frame.id, None)

    async def room(self) -> None:
        """Wait until another frame may be read: with "all", while the window is full; with
        "latest", where newer frames replace older ones, while frames with masks fill it."""
        most = self._shared.settings.window + (2 if self.policy == "latest" else 0)
        while len(self._outstanding) >= most:
            self._room.clear()
            await self._room.wait()

    def _waiting(self) -> list[Frame]:
        """Return the frames in the inbox."""
        return [item for item in self._inbox if isinstance(item, Frame)]

    def _drop_older(self, newest: Frame) -> None:
        """Drop the oldest waiting frame that has no mask and is not the newest."""
        turn, waiting = self._turn, self._waiting()
        # The turn may begin between reading `waits` and `exchange`.
        if turn and (first := turn.waits) and first.mask is None and turn.exchange(waiting[0]):
            self._inbox.remove(waiting[0])
            self._record(Dropped(first.id))
            return
        for frame in waiting:
            if frame is not newest and frame.mask is None:
                self._inbox.remove(frame)
                self._record(Dropped(frame.id))
                return

    def _record(self, outcome: Outcome) -> None:
        self.outcomes.add(outcome)
        self._outstanding.discard(outcome.frame_id)
        self._room.set()
        self._shared.metrics.frames.labels(type(outcome).__name__.lower()).inc()
        if isinstance(outcome, Dropped):
            self.dropped += 1
            self._shared.metrics.dropped.inc()
        if self.listener is not None:
            self.listener.send(outcome.message())
        if self._requests:
            self._settled.append(outcome)

    # Controls.

    async def control(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` on the stream after the frames queued before it. Raises what `work` raises."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._inbox.append(Control(work, done))
        self._wake.set()
        return await done

    async def remove(self, object_id: int) -> list[int]:
        """Remove an object; return the remaining ids. Raises InputError if it is not live."""

        async def work() -> list[int]:
            stream = await self.home.awake()
            await self.home.call(lambda: stream.remove(object_id))
            self.ids = list(stream.ids)
            return self.ids

        return await self.control(work)

    async def reset(self) -> None:
        """Start a new stream; its frame ids start at 0."""

        async def work() -> None:
            await self.home.anew()
            self.outcomes.clear()
            self._indices.clear()
            self.expected, self.ids, self.size = 0, [], None

        await self.control(work)

    async def flush(self) -> None:
        """Answer the frames that are held."""

        async def work() -> None:
            stream = await self.home.awake()
            encode = partial(encoded, self.reply)
            results = await self.home.call(lambda: [(r, r.numpy()) for r in stream.flush()])
            loop, pool = asyncio.get_running_loop(), self._shared.pool
            for result, labels in results:
                masks = await loop.run_in_executor(pool, encode, labels, result.ids)
                self._answer(Stepped(None, result, masks))

        await self.control(work)

    async def park(self) -> None:
        """Save the stream and free its memory, unless a frame is waiting. Raises OutputError."""

        async def work() -> None:
            if self.home.stream is not None and not self._waiting():
                await self.home.save(self._saved)
                await self.home.leave()

        await self.control(work)

    async def awake(self) -> None:
        """Load the stream into memory. Raises StateError if it cannot be restored here, Full if
        there is no room."""
        await self.control(self.home.awake)

    async def retire(self, *, save: bool) -> None:
        """Finish the frame in progress, discard waiting frames; save the stream if `save`."""
        self.retiring = True
        gone = self._waiting()
        for frame in gone:
            self._inbox.remove(frame)
        turn = self._turn
        if turn is not None and (waits := turn.waits) is not None and turn.exchange(None):
            gone.append(waits)
        self._outstanding -= {frame.id for frame in gone}
        self.expected = min((frame.id for frame in gone), default=self.expected)

        async def work() -> None:
            if save:
                await self.home.save(self._saved)

        await self.control(work)

    async def end(self, reason: str, code: int) -> None:
        """End the session: close its stream and remove the saved one."""
        self.stop(reason, code)
        await self.home.forget()
        await self.home.leave()

    def stop(self, reason: str, code: int) -> None:
        """Stop the task and close the connection; the saved stream stays."""
        self._task.cancel()
        controls = [item.done for item in self._inbox if isinstance(item, Control)]
        for waiting in (*controls, *self._requests.values()):
            _fail(waiting, StateError(ENDED))
        self._inbox.clear()
        if self.listener is not None:
            self.listener.finish(reason, code)

    # The task.

    def _died(self, task: asyncio.Task[None]) -> None:
        """Log an unexpected error of the task and end the session."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a session failed", exc_info=error)
            self.stop("failed", INTERNAL_ERROR)

    async def _work_off(self) -> None:
        while True:
            while not self._inbox:
                self._wake.clear()
                await self._wake.wait()
            item = self._inbox.popleft()
            self._settled.clear()
            if isinstance(item, Frame):
                await self._step(item)
                request = self._requests.get(item.id)
                if request is not None and not request.done():
                    request.set_result(list(self._settled))
            elif not item.done.done():
                await self._do(item)

    async def _do(self, control: Control) -> None:
        try:
            result = await control.work()
        except asyncio.CancelledError:
            _fail(control.done, StateError(ENDED))
            raise
        except STEP_ERRORS as error:
            _fail(control.done, error)
        else:
            if not control.done.done():
                control.done.set_result(result)

    async def _step(self, frame: Frame) -> None:
        try:
            stream = await self.home.awake()
        except STEP_ERRORS as error:
            self._record(Failed.of(frame.id, error))
            return
        index = stream.frame_count
        try:
            stepped = await self._turned(Turn(stream, frame, partial(encoded, self.reply)))
        except StepFailed as failed:
            self._record(Failed.of(failed.frame.id, failed.__cause__))
            return
        except RuntimeError as error:  # the engine thread has stopped
            self._record(Failed.of(frame.id, error))
            return
        finally:
            self._turn = None
        if stepped.frame is None:
            return
        self.frames += 1
        self.size = list(stepped.frame.image.shape[:2])
        self.home.measure()
        self._indices[index] = stepped.frame.id
        result = stepped.result
        if result is not None:
            self._answer(stepped)
        if result is None or result.frame_index != index:  # otherwise its answer is sent first
            self._record(Held(stepped.frame.id))
        every = self._shared.settings.autosave
        if every and self.frames % every == 0:
            await self.home.save_aside(self._saved)

    async def _turned(self, turn: Turn) -> Stepped:
        """Run a turn; if memory runs out, park other streams and retry."""
        while True:
            self._turn = turn
            try:
                return await asyncio.wrap_future(self._shared.worker.step(turn))
            except StepFailed as failed:
                full = isinstance(failed.__cause__, CapacityError)
                if not full or not await self._shared.relieve():
                    raise
                turn = Turn(turn.stream, failed.frame, turn.encode)

    def _answer(self, stepped: Stepped) -> None:
        result, masks = stepped.result, stepped.masks
        assert result is not None and masks is not None
        self.ids = list(result.ids)
        info = {
            "ids": self.ids,
            "queue_ms": round(stepped.queue_ms, 3),
            "step_ms": round(stepped.step_ms, 3),
        }
        self._record(Answered(self._indices.pop(result.frame_index), *masks, info))

    def _saved(self) -> Saved:
        """Return the session's state for the disk, without waiting frames."""
        waiting = [frame.id for frame in self._waiting()]
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
            indices=list(self._indices.items()),
            answers=self.outcomes.answers(),
        )


def _fail(waiting: asyncio.Future[Any], error: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(error)
