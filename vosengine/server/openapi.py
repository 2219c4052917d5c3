"""OpenAPI description of the HTTP routes, served at /openapi.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import __version__
from .protocol import REPLIES
from .settings import MOST_OBJECTS, POLICIES

Schema = dict[str, Any]

_DONE: Schema = {"description": "Done"}


def document(max_message: int) -> Schema:
    """Build the OpenAPI 3.1 document; max_message: size limit of a body in bytes."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vosengine serve",
            "version": __version__,
            "description": "Streaming video object segmentation. Frames and masks go over the "
            "WebSocket /v1/sessions/{id}/stream, which docs/serving.md describes. A body has at "
            f"most {max_message} bytes.",
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": SCHEMAS,
        },
        "paths": paths(),
    }


def paths() -> Schema:
    """Describe every route."""
    session = [_in_path("id", _SESSION_ID)]
    number = [_in_path("number", _OBJECT)]
    return {
        "/v1/sessions": {
            "post": _route(
                "Create a session, or resume one.",
                {"201": _json("Created", "Made")},
                [400, 401, 404, 413, 429],
                body=_json("Options", "Wanted"),
            ),
            "get": _route(
                "The caller's sessions.", {"200": _json("Sessions", "Session", many=True)}, [401]
            ),
        },
        "/v1/sessions/{id}": {
            "get": _route("A session.", {"200": _json("The session", "Session")}, [404], session),
            "delete": _route("End a session.", {"204": _DONE}, [404], session),
        },
        "/v1/sessions/{id}/objects/{number}": {
            "delete": _route("Remove an object.", {"204": _DONE}, [404, 503], [*session, *number])
        },
        "/v1/prompt": {
            "post": _route(
                "A mask from a box and points, for one image.",
                {"200": _content("The mask, 0 and 255", "image/png")},
                [400, 401, 413, 429],
                PROMPT,
                body={**_content("An image", "image/jpeg", "image/png"), "required": True},
            )
        },
        "/v1/models": {"get": _free("The model served.", _json("Models", "Models"))},
        "/healthz": {"get": _state("Liveness: whether the engine thread runs.", "Health")},
        "/readyz": {"get": _state("Readiness: whether sessions are accepted.", "Readiness")},
        "/metrics": {"get": _free("Prometheus metrics.", _content("Text", "text/plain"))},
        "/openapi.json": {"get": _free("This document.", _content("OpenAPI", "application/json"))},
    }


def _object(required: list[str], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _all_of(**properties: Schema) -> Schema:
    """Object schema whose properties are all required."""
    return _object(list(properties), **properties)


_TEXT: Schema = {"type": "string"}
_YES_NO: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_OBJECT: Schema = {"type": "integer", "minimum": 1, "maximum": 255}
_SESSION_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_POLICY: Schema = {"type": "string", "enum": list(POLICIES)}
_REPLY: Schema = {"type": "string", "enum": list(REPLIES)}
_SIDE: Schema = {"type": "integer", "minimum": 32, "maximum": 4096}
_SESSION: Schema = {
    "id": _SESSION_ID,
    "model": _TEXT,
    "policy": _POLICY,
    "reply": _REPLY,
    "next_frame": _COUNT,
    "ids": {"type": "array", "items": _OBJECT},
}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


SCHEMAS: Schema = {
    "Error": _all_of(error=_all_of(code=_TEXT, message=_TEXT)),
    "Wanted": _object(
        [],
        model=_or_null(_TEXT),
        max_objects=_or_null({"type": "integer", "minimum": 1, "maximum": MOST_OBJECTS}),
        size={
            "anyOf": [
                _SIDE,
                {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2},
                {"const": "native"},
                {"type": "null"},
            ]
        },
        memory=_or_null({"type": "string", "maxLength": 32}),
        policy=_or_null(_POLICY),
        reply=_or_null(_REPLY),
        resume_from=_or_null(_TEXT),
    ),
    "Made": _all_of(
        **_SESSION,
        token=_TEXT,
        window=_COUNT,
        max_message=_COUNT,
        needs_mask=_YES_NO,
        takes_mask=_YES_NO,
    ),
    "Session": _all_of(
        **_SESSION,
        state={"type": "string", "enum": ["live", "idle", "parked"]},
        frames=_COUNT,
        dropped=_COUNT,
        memory_bytes=_COUNT,
    ),
    "Models": _all_of(
        models={
            "type": "array",
            "items": _all_of(
                name=_TEXT,
                needs_mask=_YES_NO,
                takes_mask=_YES_NO,
                latency=_COUNT,
                max_objects=_COUNT,
                weights=_TEXT,
                trained=_YES_NO,
                device=_TEXT,
                precision=_TEXT,
            ),
        }
    ),
    "Health": _all_of(ok=_YES_NO),
    "Readiness": _all_of(ready=_YES_NO),
}

PROMPT: list[Schema] = [
    {
        "name": "box",
        "in": "query",
        "description": "X,Y,W,H in pixels",
        "schema": {"type": "string", "pattern": r"^[0-9]{1,5}(,[0-9]{1,5}){3}$"},
    },
    {
        "name": "point",
        "in": "query",
        "description": "X,Y on the object, or X,Y,- beside it",
        "schema": {
            "type": "array",
            "maxItems": 256,
            "items": {"type": "string", "pattern": r"^[0-9]{1,5},[0-9]{1,5}(,[+-])?$"},
        },
        "explode": True,
    },
    {
        "name": "method",
        "in": "query",
        "schema": {"type": "string", "enum": ["auto", "grabcut", "click"]},
    },
]

ERRORS = {
    400: "Invalid request",
    401: "Missing or unknown token",
    403: "A page of another site, or an unknown host name",
    404: "Not found, or not accessible with this token",
    413: "The body is too long",
    429: "Over a limit; see Retry-After",
    503: "Unavailable",
}


def _route(
    summary: str,
    responses: Schema,
    errors: Sequence[int] = (),
    parameters: list[Schema] | None = None,
    *,
    body: Schema | None = None,
    free: bool = False,
) -> Schema:
    """Describe an operation; errors: statuses besides the guard's, 403; free: no token required."""
    refused = {str(status): _json(ERRORS[status], "Error") for status in [*errors, 403]}
    operation: Schema = {"summary": summary, "responses": {**responses, **refused}}
    operation["security"] = [] if free else [{"token": []}]
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = body
    return operation


def _free(summary: str, answer: Schema) -> Schema:
    return _route(summary, {"200": answer}, free=True)


def _state(summary: str, schema: str) -> Schema:
    answers = {"200": _json("Yes", schema), "503": _json("No", schema)}
    return _route(summary, answers, free=True)


def _json(description: str, schema: str, *, many: bool = False) -> Schema:
    shown: Schema = {"$ref": f"#/components/schemas/{schema}"}
    shown = {"type": "array", "items": shown} if many else shown
    return {"description": description, "content": {"application/json": {"schema": shown}}}


def _content(description: str, *kinds: str) -> Schema:
    return {"description": description, "content": {kind: {} for kind in kinds}}


def _in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}
