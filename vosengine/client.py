"""A client of `vosengine serve`: `Client`, and `AsyncClient` for asyncio."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import cv2
import httpx
import numpy as np
from anyio.from_thread import start_blocking_portal
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .errors import InputError, VosError
from .server import protocol

T = TypeVar("T")
FINAL = (protocol.WRONG_TOKEN, protocol.NO_SESSION, protocol.TAKEN_OVER, protocol.BAD_MESSAGE)


class ServerError(VosError):
    """What the server refused. code: its short name; frame: the frame that it says it of."""

    def __init__(self, code: str, message: str, frame: int | None = None) -> None:
        super().__init__(message)
        self.code, self.frame = code, frame


@dataclass(frozen=True)
class Answer:
    """The masks of a frame: labels [H, W] uint8 object ids, ids alive, times on the server."""

    frame: int
    labels: np.ndarray
    ids: tuple[int, ...]
    queue_ms: float
    step_ms: float


class AsyncClient:
    """One stream on a server, for one task at a time.

    address  as the server prints it, with #token=TOKEN, or without and with `token`
    encoding how frames travel: jpeg (quality 90), png or raw
    tries    attempts, a second apart, to connect again after a cut; frames without an answer are
             then sent again
    options  of the session: policy, reply, max_objects, size, memory, resume_from

    Raises  ServerError for what the server refuses, and where it cannot be reached.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        encoding: str = "jpeg",
        tries: int = 20,
        **options: Any,
    ) -> None:
        split = urlsplit(address)
        self._base = f"{split.scheme}://{split.netloc}"
        self._token = token or split.fragment.removeprefix("token=")
        self._encoding, self._tries, self._options = encoding, tries, options
        self._unanswered: dict[int, bytes] = {}
        self._heard: deque[Answer] = deque()
        self._socket: ClientConnection | None = None
        self.session: dict[str, Any] = {}  # what POST /v1/sessions answered
        self.next_frame, self.window = 0, 1
        self.dropped: list[int] = []  # frames that newer ones replaced

    async def __aenter__(self) -> AsyncClient:
        self.session = await self._request("POST", "/v1/sessions", self._token, self._options)
        self.window = self.session["window"]
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()
        await self._request("DELETE", f"/v1/sessions/{self.session['id']}", self.session["token"])

    async def leave(self) -> None:
        """Close the connection; the session stays, for `resume_from` or until it is closed."""
        if self._socket is not None:
            await self._socket.close()

    async def send(self, frame: np.ndarray, mask: np.ndarray | None = None) -> int:
        """Send a frame [H, W, 3] uint8 RGB, with object ids [H, W] uint8 or without; its number.
        Waits while the server has not answered for enough of those before."""
        while len(self._unanswered) >= self.window:
            await self._hear()
        number, coded = self.next_frame, protocol.FRAMES[self._encoding]
        second = b"" if mask is None else encoded(mask, ".png")
        flags = 0 if mask is None else protocol.PROMPT
        first = _coded(frame, self._encoding)
        message = protocol.pack(protocol.FRAME, coded, number, first, second, flags)
        self.next_frame += 1
        self._unanswered[number] = message
        await self._again(lambda socket: socket.send(message))
        return number

    async def receive(self) -> Answer | None:
        """The next answer; None where none is to come for what was sent."""
        while not self._heard and self._unanswered:
            await self._hear()
        return self._heard.popleft() if self._heard else None

    async def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Answer | None:
        """Send a frame and wait for what comes of it: its answer, or of a model that looks ahead
        that of an earlier frame; None where there is none yet, or it was dropped."""
        number = await self.send(frame, mask)
        while number in self._unanswered:
            await self._hear()
        return self._heard.popleft() if self._heard else None

    async def stream(self, frames: Iterable[tuple[Any, Any]]) -> AsyncIterator[Answer]:
        """The answers for pairs of frame and mask (or None), in order, as they come; frames are
        sent while others are under way."""
        for frame, mask in frames:
            await self.send(frame, mask)
            while self._heard:
                yield self._heard.popleft()
        while (answer := await self.receive()) is not None:
            yield answer
        for answer in await self.flush():
            yield answer

    async def flush(self) -> list[Answer]:
        """The answers that a model that looks ahead still owes; then it takes no more frames."""
        await self._say("flush", "flushed")
        answers = list(self._heard)
        self._heard.clear()
        return answers

    async def remove(self, object_id: int) -> tuple[int, ...]:
        """Forget an object; the ids that are left."""
        return tuple((await self._say("remove", "removed", object=object_id))["ids"])

    async def reset(self) -> None:
        """Begin a new stream, of any size."""
        self.next_frame = (await self._say("reset", "hello"))["next_frame"]

    async def _say(self, kind: str, answered: str, **fields: Any) -> dict[str, Any]:
        while self._unanswered:
            await self._hear()
        await self._again(lambda socket: socket.send(protocol.text(kind, **fields)))
        while (said := await self._hear()).get("type") != answered:
            pass
        return said

    async def _hear(self) -> dict[str, Any]:
        """Take one message: note what it says of frames; of a text message what it says."""
        message = await self._again(lambda socket: socket.recv())
        if isinstance(message, bytes):
            found = protocol.unpack(message, protocol.ANSWER)
            labels = protocol.decode_masks(found.first, found.encoding)
            info = json.loads(bytes(found.second))
            times = info["queue_ms"], info["step_ms"]
            if self._unanswered.pop(found.frame_id, None) is not None or not info["repeated"]:
                self._heard.append(Answer(found.frame_id, labels, tuple(info["ids"]), *times))
            return {}
        said: dict[str, Any] = json.loads(message)
        gone = said.get("frames", [said.get("frame")])
        for number in gone:
            self._unanswered.pop(number, None)
        if said["type"] == "dropped":
            self.dropped += gone
        if said["type"] == "error":
            raise ServerError(said["code"], said["message"], said["frame"])
        return said

    async def _again(self, work: Callable[[ClientConnection], Awaitable[T]]) -> T:
        """Do something with the connection, with a new one where it breaks."""
        while True:
            assert self._socket is not None, "wanted: async with AsyncClient(...) as client"
            try:
                return await work(self._socket)
            except ConnectionClosed as error:
                code = error.rcvd.code if error.rcvd else 1006
                if code in FINAL:
                    reason = error.rcvd.reason if error.rcvd else ""
                    raise ServerError("closed", f"session: {code} {reason}") from error
            await self._connect()

    async def _connect(self) -> None:
        """Connect, and send again what has no answer. Raises ServerError where the server has gone
        back to an earlier frame: `next_frame` is then the one to go on with."""
        url = f"{self._base.replace('http', 'ws', 1)}/v1/sessions/{self.session['id']}/stream"
        headers = {"Authorization": f"Bearer {self.session['token']}"}
        for left in reversed(range(self._tries)):
            try:
                self._socket = await connect(
                    url,
                    subprotocols=[protocol.SUBPROTOCOL],  # type: ignore[list-item]
                    additional_headers=headers,
                    compression=None,
                    max_size=None,
                    proxy=None,
                )
                hello = json.loads(await self._socket.recv())
                waiting = sorted(self._unanswered)
                if waiting and hello["next_frame"] < waiting[0]:
                    self._unanswered.clear()
                    self.next_frame = hello["next_frame"]
                    message = f"session: the server goes on with frame {self.next_frame}"
                    raise ServerError("went_back", message + "; send the frames from there again")
                for number in waiting:
                    await self._socket.send(self._unanswered[number])
                if not waiting:
                    self.next_frame = hello["next_frame"]
                return
            except (OSError, ConnectionClosed, InvalidHandshake) as error:
                code = error.rcvd.code if isinstance(error, ConnectionClosed) and error.rcvd else 0
                if left == 0 or code in FINAL:
                    message = f"{self._base}: cannot be reached ({error})"
                    raise ServerError("unreachable", message) from error
            await asyncio.sleep(1)

    async def _request(self, method: str, path: str, token: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                answer = await client.request(method, self._base + path, json=body, headers=headers)
        except httpx.HTTPError as error:
            message = f"{self._base}: cannot be reached ({error})"
            raise ServerError("unreachable", message) from error
        if answer.is_error:
            said = answer.json()["error"]
            raise ServerError(said["code"], said["message"])
        return answer.json() if answer.content else None


class Client:
    """`AsyncClient` for code without asyncio: the same arguments and verbs."""

    def __init__(self, address: str, token: str | None = None, **options: Any) -> None:
        self._client = AsyncClient(address, token, **options)
        self._stack = ExitStack()

    def __enter__(self) -> Client:
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._stack.enter_context(self._portal.wrap_async_context_manager(self._client))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found
        return lambda *given, **named: self._portal.call(lambda: found(*given, **named))

    def stream(self, frames: Iterable[tuple[Any, Any]]) -> Iterator[Answer]:
        """As AsyncClient.stream."""
        answers = self._client.stream(frames)
        while (answer := self._portal.call(lambda: anext(answers, None))) is not None:
            yield answer


def encoded(image: np.ndarray, kind: str, *options: int) -> bytes:
    """Labels [H, W] or RGB [H, W, 3], uint8, as .png or .jpg. Raises InputError."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(f"image: wanted uint8 [H, W, 3] or [H, W], given {image.dtype}")
    done, data = cv2.imencode(kind, image if image.ndim == 2 else image[..., ::-1], options)
    if not done:
        raise InputError("image: cannot be encoded")
    return data.tobytes()


def _coded(frame: np.ndarray, encoding: str) -> bytes:
    if encoding == "raw":
        return protocol.SIZE.pack(frame.shape[1], frame.shape[0]) + frame.tobytes()
    jpeg = encoding == "jpeg"
    return encoded(frame, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 90) if jpeg else encoded(frame, ".png")
