"""What a session's task is asked to do beside frames, and who hears of its outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import StateError

ENDED = "session: has ended; make another"


class Listener(Protocol):
    """A session's connection."""

    def send(self, message: bytes | str) -> None: ...

    def finish(self, reason: str, code: int) -> None: ...

    async def finished(self) -> None: ...


@dataclass(frozen=True)
class Control:
    """Work on the stream that waits for the frames before it."""

    work: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any] = field(repr=False)

    def give_up(self) -> None:
        """Tell whoever waits for it that it will not come."""
        if not self.done.done():
            self.done.set_exception(StateError(ENDED))
