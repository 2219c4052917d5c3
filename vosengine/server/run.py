"""The server process: sockets, signals, graceful shutdown."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import cv2
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ..errors import OutputError
from .app import make_app
from .connection import CUT
from .service import Service
from .settings import Settings

CUT_SECONDS = 1.0  # between the close frame and aborting the connection


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol that can also be closed while the client does not read: the
    usual close waits for the client to read first."""

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[CUT] = self._cut
        await super().run_asgi()

    def _cut(self, code: int) -> None:
        if not self.close_sent and self.handshake_complete and not self.transport.is_closing():
            self.conn.send_close(code)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self.loop.call_later(CUT_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """uvicorn's server that shuts the service down before closing connections."""

    def __init__(
        self, config: uvicorn.Config, service: Service, announce: Callable[[int], None]
    ) -> None:
        super().__init__(config)
        self._service, self._announce = service, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.close()
        await super().shutdown(sockets)


def configure(service: Service) -> uvicorn.Config:
    """Build uvicorn's configuration for a service."""
    settings = service.settings
    return uvicorn.Config(
        make_app(service),
        host=settings.host,
        port=settings.port,
        http="h11",  # limits the length of headers
        ws=Socket,
        ws_max_size=settings.max_message,
        ws_per_message_deflate=False,
        ws_ping_interval=20.0,
        ws_ping_timeout=settings.ping_timeout,
        timeout_graceful_shutdown=max(1, round(0.2 * settings.stop_within)),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )


def serve(settings: Settings, announce: Callable[[int, tuple[str, ...]], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    announce  called with the port and the server's tokens once it listens

    Raises  what Service raises; OutputError if the port is in use.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    service = Service(settings, on_death=lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        listening = socket.create_server((settings.host, settings.port))
    except OSError as error:
        raise OutputError(
            f"port {settings.port} of {settings.host}: cannot listen ({error.strerror}); "
            "choose another --port"
        ) from error
    server = Server(configure(service), service, lambda port: announce(port, service.tokens))
    server.run([listening])
