"""An HTTP server on this machine that drops its connections."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Flaky:
    """HTTP server on this machine that sends the listed bodies, one per connection, and then
    refuses. With a Content-Length, or without one, as live streams."""

    def __init__(self, *bodies: bytes | None, length: int | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.bodies, self.length = list(bodies), length
        self.connections = 0
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def address(self, name: str) -> str:
        return f"http://me:secret@127.0.0.1:{self.listener.getsockname()[1]}/{name}"

    def _serve(self) -> None:
        while self.bodies:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            body = self.bodies.pop(0)
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(self._answer(body))
                except OSError:  # the reader closed first
                    continue
        self.listener.close()

    def _answer(self, body: bytes | None) -> bytes:
        if body is None:
            return b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        header = b"HTTP/1.1 200 OK\r\nContent-Type: video/x-matroska\r\n"
        if self.length is None:
            return header + b"Connection: close\r\n\r\n" + body
        return header + b"Content-Length: %d\r\n\r\n" % self.length + body

    def close(self) -> None:
        self.bodies.clear()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
