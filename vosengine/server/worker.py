"""Thread that steps the engine; turns and calls return Futures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np

from ..errors import VosError
from .metrics import Metrics
from .outcomes import Encoded

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.segmenter import Segmenter
    from ..types import Result

T = TypeVar("T")
Answered: TypeAlias = "tuple[Segmenter, Result[Any] | None, np.ndarray | None]"
# Errors of a step after which the next one may succeed; torch raises RuntimeError. Any other error
# ends the thread and the server.
STEP_ERRORS = (
    VosError, RuntimeError, MemoryError, ValueError, TypeError, LookupError, ArithmeticError,
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """Decoded frame.

    image    [H, W, 3] uint8
    mask     [H, W] uint8 object ids, or None
    arrived  time of arrival, by time.perf_counter
    """

    id: int
    image: np.ndarray
    mask: np.ndarray | None
    arrived: float


Encode: TypeAlias = Callable[[np.ndarray, tuple[int, ...]], Encoded]


@dataclass(frozen=True)
class Stepped:
    """Result of a turn.

    frame     the frame that was stepped; None if it was withdrawn before its turn
    result    None for a frame whose answer comes later
    masks     encoded masks of the result
    """

    frame: Frame | None
    result: Result[Any] | None = None
    masks: Encoded | None = None
    queue_ms: float = 0.0
    step_ms: float = 0.0


class StepFailed(Exception):
    """The step of `frame` failed and did not change the stream; `__cause__` has the error."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(f"frame {frame.id}")
        self.frame = frame


class Turn:
    """A stream's place in the queue. Until the turn begins, its frame may be exchanged for a newer
    one or withdrawn.

    encode  encodes labels with their object ids; not called on the event loop
    """

    def __init__(self, stream: Segmenter, frame: Frame, encode: Encode) -> None:
        self.stream, self.encode = stream, encode
        self.done: Future[Stepped] = Future()
        self._frame: Frame | None = frame
        self._begun = False
        self._lock = Lock()

    @property
    def waits(self) -> Frame | None:
        """The frame, or None once the turn has begun."""
        with self._lock:
            return None if self._begun else self._frame

    def exchange(self, frame: Frame | None) -> bool:
        """Replace the frame, or withdraw it with None; False if the turn has begun."""
        with self._lock:
            if self._begun:
                return False
            self._frame = frame
            return True

    def begin(self) -> Frame | None:
        """Begin the turn and return its frame, which can no longer be exchanged."""
        with self._lock:
            self._begun = True
            return self._frame


@dataclass(frozen=True)
class Call(Generic[T]):
    """Function to run on the engine's thread."""

    work: Callable[[], T]
    done: Future[T]

    def run(self) -> None:
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.done.set_result(self.work())
        except STEP_ERRORS as error:
            self.done.set_exception(error)


class Worker:
    """Steps one engine in a dedicated thread.

    Turns are served first come, first served, so every waiting stream gets its turn before any gets
    a second. Calls run before waiting frames.

    pool      threads that encode answers while the engine steps other frames
    on_death  called in the thread when an error other than STEP_ERRORS has ended it
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, pool: Executor, on_death: Callable[[], None]
    ) -> None:
        self.engine, self._metrics, self._pool, self._on_death = engine, metrics, pool, on_death
        self._inbox: SimpleQueue[Call[Any] | Turn | None] = SimpleQueue()
        self._turns: deque[Turn] = deque()
        self._begun: dict[Segmenter, tuple[Turn, Frame, float]] = {}
        self._dead = False
        self.used_bytes = 0  # of the engine's pages
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the work queued before."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run a function on the engine's thread."""
        done: Future[T] = Future()
        self._put(Call(work, done))
        return done

    def step(self, turn: Turn) -> Future[Stepped]:
        """Queue a stream's turn; its Future raises StepFailed if the step fails."""
        self._put(turn)
        return turn.done

    def _put(self, item: Call[Any] | Turn) -> None:
        self._inbox.put(item)
        if self._dead:  # the thread no longer reads the inbox
            self._fail_everything()

    def _fail_everything(self) -> None:
        items: list[Call[Any] | Turn] = [
            *self._turns,
            *(turn for turn, _, _ in self._begun.values()),
        ]
        self._turns.clear()
        self._begun.clear()
        while not self._inbox.empty():
            item = self._inbox.get()
            if item is not None:
                items.append(item)
        for item in items:
            if not item.done.done():
                item.done.set_exception(RuntimeError("the engine thread has stopped"))

    def _run(self) -> None:
        ended = False
        try:
            while self._take():
                self._round()
            ended = True
        finally:
            self._dead = True
            self._fail_everything()
            if not ended:
                self._on_death()

    def _take(self) -> bool:
        """Run queued calls and collect queued turns; block while there is nothing to step. Return
        False to end the thread."""
        while not (self._inbox.empty() and self._turns):
            item = self._inbox.get()
            if item is None:
                return False
            if isinstance(item, Turn):
                self._turns.append(item)
            else:
                item.run()
                self._note_memory()
        return True

    def _round(self) -> None:
        """Run one batch: begin up to `max_batch` turns and step until all are answered."""
        while self._turns and len(self._begun) < self.engine.max_batch:
            self._begin(self._turns.popleft())
        lost: dict[Segmenter, BaseException] = {}
        while self._begun:
            start = time.perf_counter()
            try:
                answered = self.engine.step()
                results = [(s, r, None if r is None else r.numpy()) for s, r in answered]
            except STEP_ERRORS as error:
                # Streams that no longer wait have failed; the next call steps the others.
                lost = {s: error for s in self._begun if not self.engine.waits_for(s)} | lost
                continue
            if results:
                self._metrics.stepped(len(results), time.perf_counter() - start)
            self._settle(results)
            for stream in [stream for stream in lost if stream in self._begun]:
                self._fail(*self._begun.pop(stream)[:2], lost[stream])
            lost.clear()
        self._note_memory()

    def _note_memory(self) -> None:
        pools = self.engine.pools
        self.used_bytes = pools.used_bytes
        self._metrics.hold(pools.used, pools.capacity)

    def _settle(self, results: list[Answered]) -> None:
        now = time.perf_counter()
        for stream, result, labels in results:
            turn, frame, begun = self._begun.pop(stream)
            times = 1e3 * (begun - frame.arrived), 1e3 * (now - begun)
            if result is None or labels is None:
                turn.done.set_result(Stepped(frame, None, None, *times))
            elif self._turns or not self._inbox.empty():
                self._pool.submit(_answer, turn, frame, result, labels, times)
            else:  # nothing else to step: encoding here avoids a thread switch
                _answer(turn, frame, result, labels, times)

    def _begin(self, turn: Turn) -> None:
        if not turn.done.set_running_or_notify_cancel():
            return  # cancelled
        frame = turn.begin()
        if frame is None:
            turn.done.set_result(Stepped(None))
            return
        now = time.perf_counter()
        self._metrics.queue_seconds.observe(now - frame.arrived)
        try:
            self.engine.submit(turn.stream, frame.image, frame.mask)
        except STEP_ERRORS as error:
            self._fail(turn, frame, error)
        else:
            self._begun[turn.stream] = turn, frame, now

    @staticmethod
    def _fail(turn: Turn, frame: Frame, why: BaseException) -> None:
        failed = StepFailed(frame)
        failed.__cause__ = why
        turn.done.set_exception(failed)


def _answer(
    turn: Turn,
    frame: Frame,
    result: Result[Any],
    labels: np.ndarray,
    times: tuple[float, float],
) -> None:
    """Encode the labels of a turn and set its result."""
    try:
        masks = turn.encode(labels, tuple(result.ids))
    except BaseException as error:  # ends the session, which waits for this turn
        turn.done.set_exception(error)
        if not isinstance(error, STEP_ERRORS):
            raise
    else:
        turn.done.set_result(Stepped(frame, result, masks, *times))
