"""Residency of a session's stream: in memory with the engine, or on disk."""

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
    """Resources shared by all sessions of a server.

    pool     threads for decoding and encoding
    disk     single thread that reads and writes saved streams
    admit    called before a stream is loaded into memory; raises Full
    relieve  called when a frame runs out of memory: parks another stream; False if there is none
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
    """Stream that can be moved from memory to disk and back.

    options  for `Engine.open`
    stream   None while it is on disk
    """

    def __init__(
        self, shared: Shared, session_id: str, options: dict[str, Any], stream: Segmenter | None
    ) -> None:
        self._shared, self._id, self._options = shared, session_id, options
        self.stream = stream
        self.memory_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._unwritten: tuple[Saved, bytes] | None = None  # newest snapshot that is to be written

    async def awake(self) -> Segmenter:
        """Return the stream, loaded from disk if parked. Raises StateError if it cannot be restored
        here, Full if there is no room."""
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
        """Replace the stream with a new one without frames. Raises Full."""
        if self.stream is None:
            await self._shared.admit()
            engine, options = self._shared.worker.engine, self._options
            self.stream = await self.call(lambda: engine.open(**options))
        await self.call(self.stream.reset)
        self.memory_bytes = 0

    def measure(self) -> None:
        """Record the stream's maximum memory, once."""
        if self.memory_bytes == 0 and self.stream is not None:
            self.memory_bytes = self.stream.memory_bytes

    async def save(self, describe: Callable[[], Saved]) -> None:
        """Write the stream to disk and keep it in memory. describe: called right after the
        snapshot. Raises OutputError."""
        if self.stream is not None:
            data = await self.call(self.stream.snapshot)
            self._unwritten = None
            await self._write(describe(), data)

    async def save_aside(self, describe: Callable[[], Saved]) -> None:
        """`save` without waiting for the disk. Of the snapshots taken while an earlier one is being
        written, the newest is written next. A failure is logged."""
        if self.stream is not None:
            data = await self.call(self.stream.snapshot)
            self._unwritten = describe(), data
            if self._writing is None or self._writing.done():
                self._writing = asyncio.ensure_future(self._write_aside())

    async def leave(self) -> None:
        """Close the stream and free its memory."""
        stream, engine = self.stream, self._shared.worker.engine
        self.stream, self.memory_bytes = None, 0
        if stream is not None:
            await self.call(lambda: engine.close(stream))

    async def forget(self) -> None:
        """Remove the saved stream."""
        self._unwritten = None
        await self.on_disk(self._shared.store.remove, self._id)

    async def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the engine's thread."""
        return await asyncio.wrap_future(self._shared.worker.call(work))

    async def on_disk(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run `work` on the disk thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._shared.disk, work, *args)

    async def _write_aside(self) -> None:
        while self._unwritten is not None:
            unwritten, self._unwritten = self._unwritten, None
            try:
                await self._write(*unwritten)
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
