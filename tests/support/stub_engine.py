"""Engine without a network for tests of the server; a test can block its steps."""

from __future__ import annotations

import json
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np

from vosengine.errors import ConfigError, InputError, StateError


class Answer(SimpleNamespace):
    """The part of Result that the server uses."""

    def numpy(self) -> np.ndarray:
        return self.labels


class StubStream:
    """Stub stream: its labels are the last mask; the first two pixels are the number of frames and
    the first value of the frame."""

    def __init__(self, engine: StubEngine, max_objects: int = 10) -> None:
        self.engine, self.max_objects = engine, max_objects
        self.closed = False
        self.reset()

    def reset(self) -> None:
        self.frame_count, self.ids = 0, ()
        self.mask: np.ndarray | None = None
        self.held: list[tuple[int, np.ndarray]] = []

    @property
    def memory_bytes(self) -> int:
        return 0 if self.mask is None else self.engine.stream_bytes

    def check(self, frame: np.ndarray, mask: np.ndarray | None) -> None:
        if self.closed:
            raise StateError("submit: the stream is closed; open another")
        if self.mask is None and mask is None:
            raise InputError("mask: needs one with the first frame")
        if self.mask is not None and self.mask.shape != frame.shape[:2]:
            raise InputError(f"frame: the stream is {self.mask.shape}, given {frame.shape[:2]}")
        if mask is not None and len(np.unique(mask)) > 1 + self.max_objects:
            raise InputError("mask: more objects than there is room for")

    def take(self, frame: np.ndarray, mask: np.ndarray | None) -> Answer | None:
        if frame[0, 0, 0] == self.engine.poison:
            raise self.engine.error
        if mask is not None:
            self.mask = mask.copy()
            self.ids = tuple(int(i) for i in np.unique(mask) if i)
        assert self.mask is not None
        labels = self.mask.copy()
        labels[0, 0], labels[0, 1] = self.frame_count % 256, frame[0, 0, 0]
        self.held.append((self.frame_count, labels))
        self.frame_count += 1
        if len(self.held) <= self.engine.latency:
            return None
        return self._answer(*self.held.pop(0))

    def _answer(self, index: int, labels: np.ndarray) -> Answer:
        return Answer(frame_index=index, labels=labels, ids=self.ids)

    def flush(self) -> list[Answer]:
        answers = [self._answer(*entry) for entry in self.held]
        self.held = []
        return answers

    def remove(self, object_id: int) -> None:
        if object_id not in self.ids:
            raise InputError(f"remove: no object {object_id}")
        assert self.mask is not None
        self.mask[self.mask == object_id] = 0
        self.ids = tuple(i for i in self.ids if i != object_id)

    def snapshot(self) -> bytes:
        pending = [(index, labels.tolist()) for index, labels in self.held]
        mask = None if self.mask is None else self.mask.tolist()
        return json.dumps([self.frame_count, self.ids, mask, pending]).encode()

    def restore(self, data: bytes) -> None:
        self.frame_count, ids, mask, pending = json.loads(data)
        self.ids = tuple(ids)
        self.mask = None if mask is None else np.array(mask, np.uint8)
        self.held = [(index, np.array(labels, np.uint8)) for index, labels in pending]


class StubEngine:
    """Stub of `vosengine.Engine` that serves streams in order of arrival.

    latency        frames by which results are delayed
    may_step       event that a step waits for
    poison, error  a frame whose first value is `poison` raises `error`
    """

    def __init__(self, *, latency: int = 0, max_batch: int = 1, stream_bytes: int = 1000) -> None:
        self.model, self.device, self.dtype, self.latency = "stub", "cpu", "torch.float32", latency
        self.max_batch, self.stream_bytes = max_batch, stream_bytes
        self.method = SimpleNamespace(
            needs_mask=True, takes_mask=True, sees=(0, latency), max_objects=10
        )
        self.card = SimpleNamespace(tag="stub", trained=False)
        self.may_step = Event()
        self.may_step.set()
        self.poison, self.error = 255, RuntimeError("out of luck")
        self.pools = SimpleNamespace(used=0, capacity=0, used_bytes=0)
        self.joins = False  # frames of a step are computed together, and fail together
        self.waiting: dict[StubStream, Any] = {}
        self.order: list[StubStream] = []  # as they were stepped
        self.opened: list[StubStream] = []
        self.answered: list[tuple[StubStream, Answer | None]] = []

    def open(self, max_objects: int = 10, memory: str | None = None, size: Any = None) -> Any:
        if memory is not None:
            raise ConfigError("memory: stub has no memory to set; leave it out")
        self.opened.append(StubStream(self, max_objects))
        return self.opened[-1]

    def close(self, stream: StubStream) -> None:
        stream.reset()
        stream.closed = True

    def waits_for(self, stream: StubStream) -> bool:
        return stream in self.waiting

    def submit(self, stream: StubStream, frame: np.ndarray, mask: np.ndarray | None) -> None:
        stream.check(frame, mask)
        self.waiting[stream] = frame, mask

    def step(self) -> list[tuple[StubStream, Answer | None]]:
        batch = list(self.waiting)[: self.max_batch]
        assert self.may_step.wait(20)
        poisoned = [s for s in batch if self.waiting[s][0][0, 0, 0] == self.poison]
        if self.joins and len(batch) > 1 and poisoned:
            self.joins = False  # the next call computes them one by one
            raise self.error
        for stream in batch:
            self._take(stream, *self.waiting.pop(stream))
        answered, self.answered = self.answered, []
        return answered

    def _take(self, stream: StubStream, frame: np.ndarray, mask: np.ndarray | None) -> None:
        self.order.append(stream)
        self.answered.append((stream, stream.take(frame, mask)))
