"""Helpers shared by the routes: errors, tokens, bodies with a size limit."""

from __future__ import annotations

from typing import Any

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse

from .protocol import TOKEN_SUBPROTOCOL


class Refused(Exception):
    """HTTP error response, raised."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


def token_of(connection: HTTPConnection) -> str | None:
    """Return the token of a request: from its Authorization header, or from a WebSocket's
    subprotocols, since a browser cannot set headers there."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    for offered in connection.scope.get("subprotocols", []):
        if offered.startswith(TOKEN_SUBPROTOCOL):
            return str(offered).removeprefix(TOKEN_SUBPROTOCOL)
    return None


def error_response(status: int, code: str, message: str, headers: Any = None) -> JSONResponse:
    """Build the JSON error response used by every route."""
    error = {"code": code, "message": message}
    return JSONResponse({"error": error}, status, headers=headers or None)


async def read_body(request: Request, most: int) -> bytes:
    """Read a request's body, at most `most` bytes. Raises Refused."""
    parts, length = [], 0
    try:
        async for part in request.stream():
            length += len(part)
            if length > most:
                raise Refused(413, "too_large", f"body: wanted at most {most} bytes")
            parts.append(part)
    except ClientDisconnect as error:
        raise Refused(400, "cut_short", "body: ended early; send it again") from error
    return b"".join(parts)
