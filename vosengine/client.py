"""Clients of `vosengine serve`: `Client`, and `AsyncClient` for asyncio; one stream each."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from .errors import ServerError
from .server import protocol
from .server.protocol import Answer

T = TypeVar("T")
P = ParamSpec("P")
Pairs = Iterable[tuple[np.ndarray, np.ndarray | None]]
FINAL = (protocol.WRONG_TOKEN, protocol.NO_SESSION, protocol.TAKEN_OVER, protocol.BAD_MESSAGE)
TRIES = 20  # reconnection attempts, one second apart


class AsyncClient:
    """Client of one stream, for one task: `async with AsyncClient(address) as client`.

    address   as the server prints it, with #token=TOKEN; or without, with `token`
    encoding  encoding of the frames sent: jpeg (quality 90), png, raw, or auto: raw to a server on
              this machine if the message is within its limit, else jpeg
    keep      keep the session on the server at exit, for `resume_from`, until it expires
    options   of the session: policy, reply, max_objects, size, memory, resume_from

    Reconnects after a lost connection and resends unanswered frames. Raises ServerError for errors
    of the server, and if it cannot be reached.
    """

    def __init__(
        self,
        address: str,
        token: str = "",
        *,
        encoding: str = "auto",
        keep: bool = False,
        **options: Any,
    ) -> None:
        split = urlsplit(address)
        self._base = f"{split.scheme}://{split.netloc}"
        self._near = split.hostname in protocol.LOOPBACK
        self._token = token or split.fragment.removeprefix("token=")
        self._encoding, self._keep, self._options = encoding, keep, options
        self._unanswered: dict[int, bytes] = {}
        self._answers: deque[Answer] = deque()
        self._socket: ClientConnection | None = None
        self.session: dict[str, Any] = {}  # response of POST /v1/sessions
        self.next_frame = 0
        self.dropped: list[int] = []  # ids of frames replaced by newer ones

    async def __aenter__(self) -> AsyncClient:
        self.session = await self._request("POST", "/v1/sessions", self._token, self._options)
        await self._with_socket(lambda _: asyncio.sleep(0))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            await self._socket.close()
        if not self._keep:
            await self._request(
                "DELETE", f"/v1/sessions/{self.session['id']}", self.session["token"]
            )

    async def send(self, frame: np.ndarray, mask: np.ndarray | None = None) -> int:
        """Send a frame, RGB uint8 [H, W, 3], optionally with a mask of object ids, uint8 [H, W];
        return its id. Waits while the session's window of unanswered frames is full."""
        message = self._message(frame, mask)
        while len(self._unanswered) >= self.session["window"]:
            await self._read_message()
        number = self.next_frame
        self._unanswered[number], self.next_frame = message, number + 1
        await self._with_socket(lambda socket: socket.send(message))
        return number

    def _message(self, frame: np.ndarray, mask: np.ndarray | None) -> bytes:
        if self._encoding != "auto":
            return protocol.frame_message(self.next_frame, frame, mask, self._encoding)
        most = self.session["max_message"] if self._near else 0
        if frame.nbytes < most:
            message = protocol.frame_message(self.next_frame, frame, mask, "raw")
            if len(message) <= most:
                return message
        return protocol.frame_message(self.next_frame, frame, mask, "jpeg")

    async def receive(self) -> Answer | None:
        """Return the next answer; None if no sent frame is unanswered."""
        while not self._answers and self._unanswered:
            await self._read_message()
        return self._answers.popleft() if self._answers else None

    async def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Answer | None:
        """Send a frame and wait for its outcome: its answer, or for a model that looks ahead that
        of an earlier frame; None if there is none yet or the frame was dropped."""
        number = await self.send(frame, mask)
        while number in self._unanswered:
            await self._read_message()
        return self._answers.popleft() if self._answers else None

    async def stream(self, pairs: Pairs) -> AsyncIterator[Answer]:
        """Send pairs of frame and mask (or None) and yield the answers in order; up to the
        session's window of frames is in progress at a time."""
        for frame, mask in pairs:
            await self.send(frame, mask)
            while self._answers:
                yield self._answers.popleft()
        while (answer := await self.receive()) is not None:
            yield answer
        for answer in await self.flush():
            yield answer

    async def flush(self) -> list[Answer]:
        """Return the outstanding answers; a model that looks ahead then accepts no more frames."""
        await self._control("flush", "flushed")
        answers, self._answers = list(self._answers), deque()
        return answers

    async def remove(self, object_id: int) -> tuple[int, ...]:
        """Remove an object; return the remaining ids."""
        return tuple((await self._control("remove", "removed", object=object_id))["ids"])

    async def reset(self) -> None:
        """Start a new stream, of any frame size."""
        self.next_frame = 0
        self.next_frame = (await self._control("reset", "hello"))["next_frame"]

    async def _control(self, kind: str, reply_kind: str, **fields: Any) -> dict[str, Any]:
        """Send a text message and wait for its reply; resent after a lost connection."""

        async def request(socket: ClientConnection) -> dict[str, Any]:
            await socket.send(protocol.text(kind, **fields))
            while (reply := self._process(await socket.recv())).get("type") != reply_kind:
                pass
            return reply

        while self._unanswered:
            await self._read_message()
        return await self._with_socket(request)

    async def _read_message(self) -> None:
        self._process(await self._with_socket(lambda socket: socket.recv()))

    def _process(self, message: str | bytes) -> dict[str, Any]:
        """Process a message; return the content of a text message, {} for an answer."""
        if isinstance(message, bytes):
            answer = protocol.read_answer(message)
            if self._unanswered.pop(answer.frame, None) is not None or not answer.repeated:
                self._answers.append(answer)
            return {}
        content: dict[str, Any] = json.loads(message)
        for number in content.get("frames", [content.get("frame")]):
            self._unanswered.pop(number, None)
        self.dropped += content.get("frames", [])
        if content["type"] == "error":
            raise ServerError(content["code"], content["message"], content["frame"])
        return content

    async def _with_socket(self, work: Callable[[ClientConnection], Awaitable[T]]) -> T:
        """Run `work` with the connection; connect, or reconnect after a failure, as needed."""
        left = TRIES
        while True:
            try:
                return await work(self._socket or await self._connect())
            except (OSError, ConnectionClosed, InvalidHandshake) as error:
                received = getattr(error, "rcvd", None)
                final = received is not None and received.code in FINAL
                if final or left == 0:
                    code = "closed" if final else "unreachable"
                    raise ServerError(code, f"{self._base}: {code} ({error})") from error
            self._socket = None
            await asyncio.sleep(left < TRIES)  # at once, then a second apart
            left -= 1

    async def _connect(self) -> ClientConnection:
        """Connect and resend unanswered frames. Raises ServerError if the server resumed from an
        earlier frame, as after a crash: `next_frame` is then the frame to continue with."""
        address = f"{self._base.replace('http', 'ws', 1)}/v1/sessions/{self.session['id']}/stream"
        headers = {"Authorization": f"Bearer {self.session['token']}"}
        offered = [Subprotocol(protocol.SUBPROTOCOL)]
        plain: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None}
        socket = await connect(address, subprotocols=offered, additional_headers=headers, **plain)
        self._socket = socket
        first, waiting = json.loads(await socket.recv())["next_frame"], [*self._unanswered]
        if waiting and first >= waiting[0]:
            for message in self._unanswered.values():
                await socket.send(message)
            return socket
        went_back, self.next_frame = first < self.next_frame, first
        self._unanswered.clear()
        if went_back:
            why = f"session: the server resumed at frame {first}; send the frames from there again"
            raise ServerError("went_back", why)
        return socket

    async def _request(self, method: str, path: str, token: str, body: Any = None) -> Any:
        address, headers = self._base + path, {"Authorization": f"Bearer {token}"}
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                answer = await client.request(method, address, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise ServerError("unreachable", f"{self._base}: unreachable ({error})") from error
        if answer.is_error:
            details = answer.json()["error"]
            raise ServerError(details["code"], details["message"])
        return answer.json() if answer.content else None


def blocking(
    verb: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """Convert a method of AsyncClient into one of Client."""

    @functools.wraps(verb)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._portal.call(functools.partial(verb, self._client, *args, **kwargs))
        return result

    return call


class Client:
    """Blocking client of one stream: the arguments, methods and errors of `AsyncClient`."""

    def __init__(self, address: str, token: str = "", **options: Any) -> None:
        self._client, self._stack = AsyncClient(address, token, **options), ExitStack()
        self._portal: BlockingPortal

    def __enter__(self) -> Client:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self._client))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def session(self) -> dict[str, Any]:
        return self._client.session

    @property
    def next_frame(self) -> int:
        return self._client.next_frame

    send, receive = blocking(AsyncClient.send), blocking(AsyncClient.receive)
    step, flush = blocking(AsyncClient.step), blocking(AsyncClient.flush)
    remove, reset = blocking(AsyncClient.remove), blocking(AsyncClient.reset)

    def stream(self, pairs: Pairs) -> Iterator[Answer]:
        answers = self._client.stream(pairs)
        while (answer := self._portal.call(anext, answers, None)) is not None:
            yield answer
