"""Shared by the tests of the server: a server in a thread, and a low-level client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import numpy as np
from conftest import tiny_config
from websockets.sync.client import ClientConnection, connect

from vosengine.engine.engine import Engine
from vosengine.server import protocol
from vosengine.server.run import Server, configure
from vosengine.server.service import Service
from vosengine.server.settings import Settings

TOKEN = "server-token"
SIZE = 48, 64


def settings(**changes: Any) -> Settings:
    """Return settings of a server with the stub engine."""
    return Settings(**{"model": "stub", "tokens": (TOKEN,), "port": 0, **changes})


def tiny_engine(model: str = "stm", **options: Any) -> Engine:
    """Return a real engine with a narrow network."""
    return Engine(model, device="cpu", precision="fp32", config=tiny_config(model), **options)


class Running:
    """Listening server.

    service, server  if it runs in this process
    """

    def __init__(
        self,
        url: str,
        http: httpx.Client,
        service: Service | None = None,
        server: Server | None = None,
    ) -> None:
        self.url, self.http = url, http
        self._service, self._server = service, server

    @property
    def service(self) -> Service:
        assert self._service is not None
        return self._service

    def stop(self) -> None:
        """Request shutdown, as SIGTERM does."""
        assert self._server is not None
        self._server.should_exit = True

    def open(self, **wanted: Any) -> dict[str, Any]:
        """Open a session and return its description, with its token."""
        answer = self.http.post("/v1/sessions", json=wanted)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def connect(self, session: dict[str, Any], **options: Any) -> Line:
        """Connect to a session and receive the hello message."""
        return Line(self.socket(session["id"], session["token"], **options))

    def socket(
        self, session: str, token: str, **options: Any
    ) -> AbstractContextManager[ClientConnection]:
        """Open a bare WebSocket, with the token passed as a browser does."""
        offered = [protocol.SUBPROTOCOL, protocol.TOKEN_SUBPROTOCOL + token]
        address = f"{self.url.replace('http', 'ws')}/v1/sessions/{session}/stream"
        options = {"subprotocols": offered, "compression": None, "proxy": None, **options}
        return connect(address, **options)


class Line:
    """A session's WebSocket."""

    def __init__(self, manager: AbstractContextManager[ClientConnection]) -> None:
        self._manager = manager
        self.socket = manager.__enter__()
        self.hello = self.hear()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.__exit__(None, None, None)

    def frame(self, number: int, value: int = 0, mask: np.ndarray | None = None) -> None:
        """Send a raw frame of one value."""
        self.image(number, np.full((*SIZE, 3), value, np.uint8), mask)

    def image(self, number: int, image: np.ndarray, mask: np.ndarray | None = None) -> None:
        self.socket.send(protocol.frame_message(number, image, mask))

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def hear(self, timeout: float = 10) -> Any:
        """Receive the next message; a result as a dict of its fields."""
        message = self.socket.recv(timeout)
        if isinstance(message, str):
            return json.loads(message)
        return {"type": "answer", **vars(protocol.read_answer(message))}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def one_object(number: int = 1) -> np.ndarray:
    """Return a mask of one object."""
    mask = np.zeros(SIZE, np.uint8)
    mask[8:24, 16:40] = number
    return mask


@contextmanager
def running(engine: Any, **changes: Any) -> Iterator[Running]:
    """Run a server of an engine in a thread, on a free port."""
    service = Service(settings(**{"model": engine.model, **changes}), engine)
    listening = threading.Event()
    ports: list[int] = []

    def announce(port: int) -> None:
        ports.append(port)
        listening.set()

    server = Server(configure(service), service, announce)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert listening.wait(20)
        url = f"http://127.0.0.1:{ports[0]}"
        with httpx.Client(base_url=url, headers=bearer(TOKEN), trust_env=False) as http:
            yield Running(url, http, service, server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(holds: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait until `holds()` is true, and return its value."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    return value
