"""Where a session's stream is: with the engine, or on disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from .metrics import Metrics
from .settings import Settings
from .store import Saved, Store
from .worker import Worker

if TYPE_CHECKING:
    from ..engine.segmenter import Segmenter

log = logging.getLogger("vosengine.server")


@dataclass(frozen=True)
class Shared:
    """What all sessions of a server use.

    pool     threads that decode and encode
    disk     the one thread that reads and writes saved streams
    admit    asked before a stream comes into memory; raises Full
    relieve  asked where a frame found no memory: parks another stream; False: there is none
    """

    settings: Settings
    worker: Worker
    metrics: Metrics
    store: Store
    pool: Executor
    disk: Executor
    admit: Callable[[], Awaitable[None]]
    relieve: Callable[[], Awaitable[bool]]


class Resident:
    """A stream that may leave memory for the disk and come back.

    options  of `Engine.open`
    stream   None while it is on disk
    """

    def __init__(
        self, shared: Shared, session_id: str, options: dict[str, Any], stream: Segmenter | None
    ) -> None:
        self._shared, self._id, self._options = shared, session_id, options
        self.stream = stream
        self.memory_bytes = 0
        self._saving: asyncio.Future[None] | None = None

    async def awake(self) -> Segmenter:
        """The stream, fetched from disk where it is there. Raises StateError where it cannot go on
        here, Full where there is no room."""
        if self.stream is None:
            await self._shared.admit()
            _, data = await self.on_disk(self._shared.store.load, self._id)
            engine, options = self._shared.worker.engine, self._options

            def restored() -> Segmenter:
                stream = engine.open(**options)
                stream.restore(data)
                return stream

            self.stream = await self.call(restored)
            self.measure()
        return self.stream

    async def anew(self) -> None:
        """A stream without a frame, in place of what there was. Raises Full."""
        if self.stream is None:
            await self._shared.admit()
            engine, options = self._shared.worker.engine, self._options
            self.stream = await self.call(lambda: engine.open(**options))
        await self.call(self.stream.reset)
        self.memory_bytes = 0

    def measure(self) -> None:
        """Note what the stream's memory may come to take; that stays as it is."""
        if self.memory_bytes == 0 and self.stream is not None:
            self.memory_bytes = self.stream.memory_bytes

    async def save(self, describe: Callable[[], Saved]) -> None:
        """Write the stream to disk; it goes on too. describe: asked right after the snapshot was
        taken. Raises OutputError."""
        if self.stream is not None:
            data = await self.call(self.stream.snapshot)
            await self._write(describe(), data)

    async def save_aside(self, describe: Callable[[], Saved]) -> None:
        """`save`, without waiting for the disk; left out while the last one is being written. What
        fails is logged, and tried again the next time."""
        if self.stream is not None and (self._saving is None or self._saving.done()):
            data = await self.call(self.stream.snapshot)
            self._saving = asyncio.ensure_future(self._try_to_write(describe(), data))

    async def leave(self) -> None:
        """Free the stream's memory."""
        stream, engine = self.stream, self._shared.worker.engine
        self.stream, self.memory_bytes = None, 0
        if stream is not None:
            await self.call(lambda: engine.close(stream))

    async def forget(self) -> None:
        """Remove what is on disk."""
        await self.on_disk(self._shared.store.remove, self._id)

    async def call(self, work: Callable[[], Any]) -> Any:
        """Do something on the engine's thread."""
        return await asyncio.wrap_future(self._shared.worker.call(work))

    async def on_disk(self, work: Callable[..., Any], *given: Any) -> Any:
        """Do something on the thread of the disk."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._shared.disk, work, *given)

    async def _try_to_write(self, saved: Saved, data: bytes) -> None:
        try:
            await self._write(saved, data)
        except OutputError as error:
            log.error("a stream could not be saved: %s", error)

    async def _write(self, saved: Saved, data: bytes) -> None:
        start = time.perf_counter()
        try:
            await self.on_disk(self._shared.store.save, saved, data)
        except OutputError:
            self._shared.metrics.failed_snapshots.inc()
            raise
        self._shared.metrics.snapshot_seconds.observe(time.perf_counter() - start)
