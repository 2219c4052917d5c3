"""The server as a process: its sockets, its signals, and an orderly end."""

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

CUT_SECONDS = 1.0  # for the close code to be read before the connection is gone


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which can also be ended where the client takes nothing any more: the
    plain way waits for the client to read first."""

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
    """uvicorn's server, which lets the service finish before it closes connections."""

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


def configure(service: Service, **changes: Any) -> uvicorn.Config:
    """uvicorn's settings for a service."""
    settings = service.settings
    return uvicorn.Config(
        make_app(service),
        **{
            "host": settings.host,
            "port": settings.port,
            "http": "h11",  # whose headers are of a bounded length
            "ws": Socket,
            "ws_max_size": settings.max_message,
            "ws_per_message_deflate": False,
            "ws_ping_interval": 20.0,
            "ws_ping_timeout": settings.ping_timeout,
            "timeout_graceful_shutdown": max(1, round(0.2 * settings.stop_within)),
            "log_level": "warning",
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,
            "limit_concurrency": None,
            **changes,
        },
    )


def serve(settings: Settings, announce: Callable[[int, tuple[str, ...]], None]) -> None:
    """Serve until a signal comes.

    announce  told the port and the server's tokens once it listens

    Raises what Service raises; OutputError where the port is taken.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    service = Service(settings, on_death=lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        listening = socket.create_server((settings.host, settings.port))
    except OSError as error:
        raise OutputError(
            f"port {settings.port} of {settings.host}: cannot be listened on ({error.strerror}); "
            "choose another --port"
        ) from error
    server = Server(configure(service), service, lambda port: announce(port, service.tokens))
    server.run([listening])
