"""HTTP and WebSocket routes of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..errors import ConfigError, InputError, StateError, VosError
from .connection import Connection
from .guard import Guard
from .http import Refused, error_response, read_body, token_of
from .kserve import KServe
from .openapi import document
from .page import page_routes
from .prompting import mask_png, parse_box, parse_points
from .protocol import BAD_MESSAGE, NO_SESSION, RESTARTS, SUBPROTOCOL, WRONG_TOKEN, text
from .service import RETRY_SECONDS, Full, Service, Unknown
from .session import Session
from .settings import Wanted

MOST_PROMPTS = 8  # in progress at a time
WRONG = "token: not one of this server's; see its --token"


def make_app(service: Service) -> Starlette:
    """Build the ASGI application; its lifespan starts and stops the service."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    routes = Routes(service)
    app = Starlette(
        routes=[*routes.all(), *KServe(service).routes(), *page_routes()],
        middleware=[Middleware(Guard, settings=service.settings, metrics=service.metrics)],
        exception_handlers={Refused: routes.refused, 404: _no_route, 405: _no_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class Routes:
    """Request handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._prompting = 0

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
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]

    # Sessions.

    async def make_session(self, request: Request) -> Response:
        service = self._service
        owner = service.owner(token_of(request))
        body = await self._json(request)
        try:
            wanted = Wanted.parse(body, service.settings.model)
            if wanted.resume_from is not None:
                # A session's own token may resume that session too.
                session, token = await service.resume(token_of(request), wanted.resume_from)
            elif owner is None:
                raise Refused(401, "token", WRONG)
            else:
                session, token = await service.open(owner, wanted)
        except Full as error:
            raise Refused(
                429, error.reason, str(error), **{"retry-after": str(RETRY_SECONDS)}
            ) from error
        except Unknown as error:
            self._known_token(request)
            raise Refused(404, "no_session", str(error)) from error
        except (ConfigError, InputError, StateError) as error:
            raise Refused(400, "bad_option", str(error)) from error
        settings, method = service.settings, service.engine.method
        made = self._describe(
            session,
            token=token,
            window=settings.window,
            max_message=settings.max_message,
            needs_mask=bool(method.needs_mask),
            takes_mask=bool(method.takes_mask),
        )
        return JSONResponse(made, 201)

    def _describe(self, session: Session, **more: Any) -> dict[str, Any]:
        return {
            "id": session.id,
            "model": self._service.settings.model,
            "policy": session.policy,
            "reply": session.reply,
            "next_frame": session.expected,
            "ids": session.ids,
            **more,
        }

    def _state(self, session: Session) -> dict[str, Any]:
        return self._describe(
            session,
            state=session.state,
            frames=session.frames,
            dropped=session.dropped,
            memory_bytes=session.home.memory_bytes,
        )

    async def list_sessions(self, request: Request) -> Response:
        owned = self._service.owned(self._known_token(request))
        return JSONResponse([self._state(session) for session in owned])

    async def show_session(self, request: Request) -> Response:
        return JSONResponse(self._state(self._session(request)))

    async def end_session(self, request: Request) -> Response:
        await self._service.end(self._session(request))
        return Response(status_code=204)

    async def remove_object(self, request: Request) -> Response:
        session, number = self._session(request), request.path_params["number"]
        if not (number.isascii() and number.isdigit() and len(number) <= 3):
            raise Refused(404, "no_object", "object: wanted an id, 1..255")
        try:
            ids = await session.remove(int(number))
        except InputError as error:
            raise Refused(404, "no_object", str(error)) from error
        except VosError as error:
            raise Refused(503, "unavailable", str(error)) from error
        if session.listener is not None:
            session.listener.send(text("removed", object=int(number), ids=ids))
        return Response(status_code=204)

    def _known_token(self, request: Request) -> str | None:
        """Return a request's token. Raises Refused if it is not one of this server's."""
        token = token_of(request)
        if not self._service.known(token):
            raise Refused(401, "token", WRONG)
        return token

    def _session(self, request: Request) -> Session:
        try:
            return self._service.find(request.path_params["id"], token_of(request))
        except Unknown as error:
            raise Refused(404, "no_session", str(error)) from error

    async def stream(self, socket: WebSocket) -> None:
        """Accept the WebSocket of a session."""
        service, token = self._service, token_of(socket)
        offered = socket.scope.get("subprotocols", [])
        known = SUBPROTOCOL in offered
        await socket.accept(SUBPROTOCOL if known else None)
        if not known:
            await self._reject_socket(socket, BAD_MESSAGE, f"wanted the subprotocol {SUBPROTOCOL}")
        elif not service.known(token):
            await self._reject_socket(socket, WRONG_TOKEN, "token: not one of this server's")
        elif service.closing:
            await self._reject_socket(socket, RESTARTS, "restart")
        else:
            try:
                session = service.find(socket.path_params["id"], token)
            except Unknown:
                await self._reject_socket(socket, NO_SESSION, "session: no session has this id")
                return
            await Connection(socket, session, service.settings, service.pool).run()

    async def _reject_socket(self, socket: WebSocket, code: int, reason: str) -> None:
        self._service.metrics.rejections.labels("websocket").inc()
        await socket.close(code, reason)

    # Other routes.

    async def prompt(self, request: Request) -> Response:
        """Return the mask of an object marked by a box and points."""
        self._known_token(request)
        query, settings = request.query_params, self._service.settings
        try:
            box, points = parse_box(query.getlist("box")), parse_points(query.getlist("point"))
            method = query.get("method", "auto")
            body = await read_body(request, settings.max_message)
            png = await self._run_prompt(body, box, points, method, settings.max_pixels)
        except (InputError, ConfigError) as error:
            raise Refused(400, "bad_prompt", str(error)) from error
        return Response(png, media_type="image/png")

    async def _run_prompt(self, *args: Any) -> bytes:
        """Run `mask_png` in the single prompt thread: it takes as long as many frames."""
        if self._prompting >= MOST_PROMPTS:
            headers = {"retry-after": "1"}
            raise Refused(429, "busy", "prompt: too many at a time; try again", **headers)
        self._prompting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._service.prompts, mask_png, *args)
        finally:
            self._prompting -= 1

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

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document(self._service.settings.max_message))

    async def _json(self, request: Request) -> Any:
        body = await read_body(request, 1 << 16)
        try:
            return json.loads(body) if body else {}
        except (ValueError, RecursionError) as error:
            raise Refused(400, "bad_json", "body: not valid JSON") from error

    async def refused(self, _request: Any, error: Any) -> Response:
        """Convert a Refused to its response."""
        self._service.metrics.rejections.labels(error.code).inc()
        return error_response(error.status, error.code, str(error), error.headers)


async def _no_route(request: Any, error: Any) -> Response:
    message = f"{request.method}: wanted a route listed in /openapi.json"
    code = "no_route" if error.status_code == 404 else "no_method"
    return error_response(error.status_code, code, message, error.headers)
