"""WebSocket connection of a session: reads frames and controls, writes their outcomes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import InputError, VosError
from .images import decode_frame, decode_mask
from .protocol import (
    BAD_MESSAGE,
    FRAME,
    PROMPT,
    RAW,
    REPLIES,
    TOO_SLOW,
    Message,
    error_text,
    text,
    unpack,
)
from .session import Session
from .settings import Settings
from .worker import STEP_ERRORS, Frame

LONGEST_TEXT = 4096  # characters
MOST_UNSENT = 32  # messages
SLOW_SECONDS = 20.0  # time limit for sending one message
CUT = "vosengine.cut"  # scope extension: closes a connection whose client does not read


class BadMessage(Exception):
    """Malformed message that belongs to no frame; closes the connection."""


class Connection:
    """One client's connection to a session; a newer connection replaces it.

    Outgoing messages wait in a queue of at most MOST_UNSENT; a client that does not read them
    is disconnected.
    """

    def __init__(
        self, socket: WebSocket, session: Session, settings: Settings, pool: Executor
    ) -> None:
        self._socket, self._session, self._settings, self._pool = socket, session, settings, pool
        self._outbox: deque[bytes | str] = deque()
        self._unsent = 0  # bytes
        self._there = asyncio.Event()
        self._code: int | None = None  # close code, applied once everything is sent
        self._cut_off = False
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve the connection until either side closes it."""
        self._session.attach(self)
        writer, reader = asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())
        try:
            await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
            if self._code is not None and not self._cut_off:  # the reader ended: send the reason
                await asyncio.wait({writer}, timeout=SLOW_SECONDS)
        finally:
            self._session.detach(self)
            for task in (writer, reader):
                task.cancel()
            ended = await asyncio.gather(writer, reader, return_exceptions=True)
            self._over.set()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    def send(self, message: bytes | str) -> None:
        """Queue a message."""
        if self._code is not None or self._cut_off:
            return
        self._outbox.append(message)
        self._unsent += len(message)
        most = 4 * self._settings.max_message
        if len(self._outbox) > MOST_UNSENT or (self._unsent > most and len(self._outbox) > 1):
            self._cut()
        self._there.set()

    def finish(self, reason: str, code: int) -> None:
        """Send the reason and close once the queue is sent; later messages are dropped."""
        if self._code is None and not self._cut_off:
            self._outbox.append(text("closing", reason=reason))
            self._code = code
            self._there.set()

    async def finished(self) -> None:
        """Wait until the connection is closed."""
        await self._over.wait()

    def _cut(self) -> None:
        """Close a connection whose client does not read."""
        self._cut_off = True
        self._outbox.clear()
        self._there.set()
        self._socket.scope["extensions"][CUT](TOO_SLOW)

    # Sending.

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._cut_off:
            if not self._outbox:
                if self._code is not None:
                    with suppress(WebSocketDisconnect):
                        await self._socket.close(self._code)
                    return
                self._there.clear()
                await self._there.wait()
                continue
            message = self._outbox.popleft()
            self._unsent -= len(message)
            too_long = loop.call_later(SLOW_SECONDS, self._cut)
            try:
                if isinstance(message, str):
                    await self._socket.send_text(message)
                else:
                    await self._socket.send_bytes(message)
            except WebSocketDisconnect:
                return
            finally:
                too_long.cancel()

    # Receiving.

    async def _read(self) -> None:
        while True:
            await self._session.room()
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self._cut_off = True
                return
            data, string = message.get("bytes"), message.get("text")
            try:
                if data is not None:
                    await self._frame(unpack(data, FRAME))
                else:
                    await self._text(string or "")
            except (BadMessage, InputError) as error:
                self.send(error_text("bad_message", str(error)))
                self.finish("bad message", BAD_MESSAGE)
                return

    async def _frame(self, message: Message) -> None:
        session, arrived = self._session, time.perf_counter()
        frame_id = message.frame_id
        if session.retiring:
            return  # the client sends it again to the next server
        if frame_id != session.expected:
            self._repeat(frame_id)
            return
        decoded: tuple[np.ndarray, np.ndarray | None] | InputError
        loop = asyncio.get_running_loop()
        try:
            if message.encoding == RAW and not message.flags & PROMPT:
                decoded = self._decode(message)  # a view: not worth a thread switch
            else:
                decoded = await loop.run_in_executor(self._pool, self._decode, message)
        except InputError as error:
            decoded = error
        if frame_id != session.expected:  # a newer connection has sent it already
            return
        if isinstance(decoded, InputError):
            session.refuse(frame_id, "bad_frame", str(decoded))
        else:
            session.put(Frame(frame_id, *decoded, arrived))

    def _decode(self, message: Message) -> tuple[np.ndarray, np.ndarray | None]:
        """Decode the frame and the mask of a message. Raises InputError."""
        frame = decode_frame(message.first, message.encoding, self._settings.max_pixels)
        if not message.flags & PROMPT:
            return frame, None
        return frame, decode_mask(message.second, frame.shape[:2])

    def _repeat(self, frame_id: int) -> None:
        session = self._session
        try:
            outcome = session.repeat(frame_id)
        except InputError as error:
            message = f"{error} (next_frame {session.expected})"
            self.send(error_text("bad_frame_id", message, frame_id))
        else:
            if outcome is not None:  # None: in progress, and this client gets the answer
                self.send(outcome.message(repeated=True))

    async def _text(self, message: str) -> None:
        """Handle a text message. Raises BadMessage."""
        try:
            control = json.loads(message) if len(message) <= LONGEST_TEXT else None
        except (ValueError, RecursionError):
            control = None
        if not isinstance(control, dict):
            raise BadMessage(f"message: wanted a JSON object of at most {LONGEST_TEXT} characters")
        try:
            answer = await self._control(control)
            if answer is not None:
                self.send(answer)
        except VosError as error:
            self.send(error_text("bad_request", str(error)))
        except STEP_ERRORS as error:
            kind = type(error).__name__
            self.send(error_text("failed", f"{control.get('type')}: failed ({kind})"))

    async def _control(self, control: dict[str, Any]) -> str | None:
        """Execute a control message; return the reply, or None."""
        session, kind = self._session, control.get("type")
        if kind == "remove":
            number = control.get("object")
            if type(number) is not int:
                raise InputError("remove: wanted {object: N} with an object id")
            return text("removed", object=number, ids=await session.remove(number))
        if kind == "reset":
            await session.reset()
            return session.hello()
        if kind == "flush":
            await session.flush()
            return text("flushed")
        if kind == "reply":
            reply = control.get("encoding")
            if reply not in REPLIES:
                raise InputError(f"reply: wanted an encoding among {', '.join(REPLIES)}")
            session.reply = reply
            return None
        raise InputError("message: wanted type remove, reset, flush or reply")
