"""Host and Origin checks for every request, and security headers on every response."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .http import error_response
from .metrics import Metrics
from .protocol import LOOPBACK
from .settings import Settings

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self' blob:; connect-src 'self' {sockets}; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware: rejects requests with an unknown Host (DNS rebinding) or from another site's
    page, and adds security headers to every response."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._origins = {origin.lower().rstrip("/") for origin in settings.allow_origins}
        self._hosts = {host.lower() for host in (*LOOPBACK, settings.host, *settings.allow_hosts)}
        self._any_address = settings.host not in LOOPBACK  # an IP address cannot be rebound

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refusal(headers, scope)
        if refused is None:
            await self._app(scope, receive, _with_headers(send, headers.get("host", "")))
            return
        self._metrics.rejections.labels(refused[0]).inc()
        await error_response(403, *refused, HEADERS)(scope, receive, send)

    def _refusal(self, headers: Headers, scope: Scope) -> tuple[str, str] | None:
        """Return (reason, message) for a request to reject, otherwise None."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(host := hosts[0].lower()):
            return "host", "host: not one of this server's names; see --allow-host"
        origins = headers.getlist("origin")
        if origins:
            own = {f"http://{host}", f"https://{host}"} | self._origins
            if len(origins) > 1 or origins[0].lower() not in own:
                return "origin", "origin: a page of another site; see --allow-origin"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            split = urlsplit(f"//{host}")
            name, _ = split.hostname or "", split.port
        except ValueError:
            return False
        if split.netloc != host or split.path or "@" in host:
            return False
        return name in self._hosts or (self._any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send, host: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            sockets = f"ws://{host} wss://{host}"
            headers.setdefault("content-security-policy", POLICY.format(sockets=sockets))
        await send(message)

    return wrapped
