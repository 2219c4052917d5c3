"""The routes of the server."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..errors import ConfigError, InputError, StateError, VosError
from .connection import Connection
from .guard import Guard
from .images import decode_image
from .page import page_routes
from .protocol import (
    BAD_MESSAGE,
    NO_SESSION,
    SUBPROTOCOL,
    TOKEN_SUBPROTOCOL,
    WRONG_TOKEN,
    text,
)
from .service import RETRY_SECONDS, Full, Service, Unknown
from .session import Session
from .settings import Wanted

Handler = Callable[[Request], Awaitable[Response]]
MOST_POINTS = 256  # of a prompt
METHODS = ("auto", "grabcut", "click")


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


def make_app(service: Service) -> Starlette:
    """The ASGI application of a service, which it starts and ends."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    routes = Routes(service)
    app = Starlette(
        routes=[*routes.all(), *page_routes()],
        middleware=[Middleware(Guard, settings=service.settings, metrics=service.metrics)],
        exception_handlers={Refused: _refused, 404: _not_there, 405: _not_there},
        lifespan=lifespan,
    )
    return app


class Routes:
    """What is done for each request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def all(self) -> list[Route | WebSocketRoute]:
        session = "/v1/sessions/{id}"
        return [
            Route("/v1/sessions", self.make_session, methods=["POST"]),
            Route("/v1/sessions", self.list_sessions, methods=["GET"]),
            Route(session, self.show_session, methods=["GET"]),
            Route(session, self.end_session, methods=["DELETE"]),
            Route(session + "/objects/{number}", self.remove_object, methods=["DELETE"]),
            WebSocketRoute(session + "/stream", self.stream),
            Route("/v1/prompt", self.prompt, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.readiness, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    # Sessions.

    async def make_session(self, request: Request) -> Response:
        service = self._service
        owner = service.owner(token_of(request))
        body = await self._json(request)
        try:
            wanted = Wanted.parse(body, service.settings.model)
            if wanted.resume_from is not None:
                # A session's own token is as good as the server's, for that session.
                session, token = await service.resume(token_of(request), wanted.resume_from)
            elif owner is None:
                raise self._reject(401, "token", "token: is not this server's; see its --token")
            else:
                session, token = await service.open(owner, wanted)
        except Full as error:
            raise self._reject(
                429, error.reason, str(error), **{"retry-after": str(RETRY_SECONDS)}
            ) from error
        except Unknown as error:
            if not service.known(token_of(request)):
                raise self._reject(401, "token", "token: is not this server's") from error
            raise self._reject(404, "no_session", str(error)) from error
        except (ConfigError, InputError, StateError) as error:
            raise self._reject(400, "bad_option", str(error)) from error
        return JSONResponse({**self._facts(session), "token": token}, 201)

    def _facts(self, session: Session) -> dict[str, Any]:
        settings, method = self._service.settings, self._service.engine.method
        return {
            "id": session.id,
            "model": settings.model,
            "policy": session.policy,
            "reply": session.reply,
            "window": settings.window,
            "max_message": settings.max_message,
            "next_frame": session.expected,
            "ids": session.ids,
            "needs_mask": bool(method.needs_mask),
            "takes_mask": bool(method.takes_mask),
        }

    async def list_sessions(self, request: Request) -> Response:
        token = token_of(request)
        if not self._service.known(token):
            raise self._reject(401, "token", "token: is not this server's; see its --token")
        return JSONResponse([session.describe() for session in self._service.owned(token)])

    async def show_session(self, request: Request) -> Response:
        return JSONResponse(self._session(request).describe())

    async def end_session(self, request: Request) -> Response:
        await self._service.end(self._session(request))
        return Response(status_code=204)

    async def remove_object(self, request: Request) -> Response:
        session, number = self._session(request), request.path_params["number"]
        if not (number.isascii() and number.isdigit() and len(number) <= 3):
            raise self._reject(404, "no_object", "object: wanted an id, 1..255")
        try:
            ids = await session.remove(int(number))
        except InputError as error:
            raise self._reject(404, "no_object", str(error)) from error
        except VosError as error:
            raise self._reject(503, "unavailable", str(error)) from error
        if session.listener is not None:
            session.listener.send(text("removed", object=int(number), ids=ids))
        return Response(status_code=204)

    def _session(self, connection: HTTPConnection) -> Session:
        try:
            return self._service.find(connection.path_params["id"], token_of(connection))
        except Unknown as error:
            raise self._reject(404, "no_session", str(error)) from error

    async def stream(self, socket: WebSocket) -> None:
        """The WebSocket of a session."""
        service, token = self._service, token_of(socket)
        offered = socket.scope.get("subprotocols", [])
        known = SUBPROTOCOL in offered
        await socket.accept(SUBPROTOCOL if known else None)
        if not known:
            await self._turn_away(socket, BAD_MESSAGE, f"wanted the subprotocol {SUBPROTOCOL}")
        elif not service.known(token):
            await self._turn_away(socket, WRONG_TOKEN, "token: is not this server's")
        elif service.closing:
            await self._turn_away(socket, 1012, "restart")
        else:
            try:
                session = service.find(socket.path_params["id"], token)
            except Unknown:
                await self._turn_away(socket, NO_SESSION, "session: there is none of that id")
                return
            await Connection(socket, session, service.settings, service.pool).run()

    async def _turn_away(self, socket: WebSocket, code: int, reason: str) -> None:
        self._service.metrics.rejections.labels("websocket").inc()
        await socket.close(code, reason)

    # The rest.

    async def prompt(self, request: Request) -> Response:
        """A mask from a box and points."""
        if not self._service.known(token_of(request)):
            raise self._reject(401, "token", "token: is not this server's; see its --token")
        asked, settings = request.query_params, self._service.settings
        try:
            box, points = _box(asked.getlist("box")), _points(asked.getlist("point"))
            method = asked.get("method", "auto")
            if method not in METHODS:
                raise InputError(f"method: wanted {', '.join(METHODS)}")
            body = await self._body(request)
            png = await asyncio.get_running_loop().run_in_executor(
                self._service.pool, _mask_png, body, box, points, method, settings.max_pixels
            )
        except (InputError, ConfigError) as error:
            raise self._reject(400, "bad_prompt", str(error)) from error
        return Response(png, media_type="image/png")

    async def models(self, request: Request) -> Response:
        engine = self._service.engine
        method = engine.method
        model = {
            "name": engine.model,
            "needs_mask": bool(method.needs_mask),
            "takes_mask": bool(method.takes_mask),
            "latency": max(0, *method.sees),
            "max_objects": method.max_objects,
            "weights": engine.card.tag,
            "trained": bool(engine.card.trained),
            "device": str(engine.device),
            "precision": str(engine.dtype).removeprefix("torch."),
        }
        return JSONResponse({"models": [model]})

    async def health(self, request: Request) -> Response:
        alive = self._service.worker.alive
        return JSONResponse({"ok": alive}, 200 if alive else 503)

    async def readiness(self, request: Request) -> Response:
        ready = self._service.ready and self._service.worker.alive
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _json(self, request: Request) -> Any:
        body = await self._body(request, most=1 << 16)
        try:
            return json.loads(body) if body else {}
        except (ValueError, RecursionError) as error:
            raise self._reject(400, "bad_json", "body: is no JSON") from error

    async def _body(self, request: Request, most: int | None = None) -> bytes:
        """A request's body, of a bounded length."""
        most = most or self._service.settings.max_message
        parts, length = [], 0
        try:
            async for part in request.stream():
                length += len(part)
                if length > most:
                    raise self._reject(413, "too_large", f"body: wanted at most {most} bytes")
                parts.append(part)
        except ClientDisconnect as error:
            raise self._reject(400, "cut_short", "body: was cut short") from error
        return b"".join(parts)

    def _reject(self, status: int, code: str, message: str, **headers: str) -> Refused:
        self._service.metrics.rejections.labels(code).inc()
        return Refused(status, code, message, **headers)


def token_of(connection: HTTPConnection) -> str | None:
    """The token of a request: of its Authorization, or of a WebSocket's subprotocols, since a
    browser can set no headers there."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    for offered in connection.scope.get("subprotocols", []):
        if offered.startswith(TOKEN_SUBPROTOCOL):
            return str(offered).removeprefix(TOKEN_SUBPROTOCOL)
    return None


async def _refused(_request: Any, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error_response(error.status, error.code, str(error), error.headers)


async def _not_there(request: Any, error: Any) -> Response:
    message = f"{request.method}: wanted a route of /openapi.json"
    code = "no_route" if error.status_code == 404 else "no_method"
    return error_response(error.status_code, code, message, error.headers)


def error_response(status: int, code: str, message: str, headers: Any = None) -> JSONResponse:
    """An error as every route answers it."""
    error = {"code": code, "message": message}
    return JSONResponse({"error": error}, status, headers=headers or None)


def _numbers(text: str, count: int) -> list[int]:
    parts = text.split(",")
    if len(parts) != count or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        raise InputError(f"wanted {count} whole numbers with commas between them")
    return [int(part) for part in parts]


def _box(given: list[str]) -> tuple[int, int, int, int] | None:
    """X,Y,W,H."""
    if not given:
        return None
    if len(given) > 1:
        raise InputError("box: wanted one")
    try:
        left, top, width, height = _numbers(given[0], 4)
    except InputError as error:
        raise InputError(f"box: {error}, X,Y,W,H") from error
    return left, top, width, height


def _points(given: list[str]) -> list[tuple[int, int, bool]]:
    """X,Y on the object, or X,Y,- beside it."""
    if len(given) > MOST_POINTS:
        raise InputError(f"point: wanted at most {MOST_POINTS}, given {len(given)}")
    points = []
    for each in given:
        on = not each.endswith(",-")
        try:
            x, y = _numbers(each.removesuffix(",-").removesuffix(",+"), 2)
        except InputError as error:
            raise InputError(f"point: {error}, X,Y or X,Y,-") from error
        points.append((x, y, on))
    return points


def _mask_png(
    body: bytes,
    box: tuple[int, int, int, int] | None,
    points: list[tuple[int, int, bool]],
    method: str,
    max_pixels: int,
) -> bytes:
    """The PNG of a mask; in a thread. Raises InputError."""
    frame = decode_image(body, max_pixels)
    prompts = importlib.import_module("vosengine.prompts")
    mask: np.ndarray = prompts.mask_from(frame, box=box, points=points, method=method)
    done, png = cv2.imencode(".png", np.where(mask > 0, 255, 0).astype(np.uint8))
    if not done:
        raise InputError("prompt: the mask cannot be written as PNG")
    return png.tobytes()
