"""Static files of the page at /, read once at startup; no other file is served."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".wasm": "application/wasm",
}


class Asset(NamedTuple):
    """Content, media type and ETag of a file."""

    data: bytes
    kind: str
    tag: str


def page_routes(folder: Path = FOLDER) -> list[Route]:
    """Build a route for each file of the page, and / for index.html."""
    assets: dict[str, Asset] = {}
    for path in sorted(folder.rglob("*")):
        kind = TYPES.get(path.suffix)
        if kind is not None and path.is_file():
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            assets["/" + path.relative_to(folder).as_posix()] = Asset(data, kind, tag)
    if "/index.html" in assets:
        assets["/"] = assets["/index.html"]
    return [Route(name, _serve(asset), methods=["GET"]) for name, asset in assets.items()]


def _serve(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    async def handler(request: Request) -> Response:
        headers = {"etag": asset.tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == asset.tag:
            return Response(status_code=304, headers=headers)
        return Response(
            asset.data, media_type=None, headers={**headers, "content-type": asset.kind}
        )

    return handler
