"""Controls queued among a session's frames, and the listener for its outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import StateError

ENDED = "session: has ended; create a new one"


class Listener(Protocol):
    """Connection that receives a session's messages."""

    def send(self, message: bytes | str) -> None: ...

    def finish(self, reason: str, code: int) -> None: ...

    async def finished(self) -> None: ...


@dataclass(frozen=True)
class Control:
    """Operation on the stream, run after the frames queued before it."""

    work: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any] = field(repr=False)

    def give_up(self) -> None:
        """Fail the future: the operation will not run."""
        if not self.done.done():
            self.done.set_exception(StateError(ENDED))
