"""KServe v2 protocol over HTTP with the binary extension, as used by NVIDIA's tritonclient. A video
is a sequence; the tensors are those of an exported model's repository:

    frame   uint8 [H, W, 3]  RGB
    prompt  uint8 [H, W]     object ids, 0 for unmarked pixels; optional
    labels  uint8 [H, W]     for the frame `latency` requests earlier (a parameter of the model's
                             configuration); zeros for the first `latency` requests
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..errors import InputError, StateError, VosError
from .http import Refused, read_body, token_of
from .outcomes import Answered, Failed
from .service import RETRY_SECONDS, Full, Service
from .session import Session
from .settings import Wanted
from .worker import Frame

FRAME, PROMPT, LABELS = "frame", "prompt", "labels"
HEADER_LENGTH = "inference-header-content-length"
PIXELS = "pixels"  # reply encoding: raw labels
SHAPES: Mapping[str, list[int]] = {FRAME: [-1, -1, 3], PROMPT: [-1, -1], LABELS: [-1, -1]}
STATUS = {"bad_frame": 400, "unavailable": 503, "step_failed": 500}


class KServe:
    """Routes under /v2; sequences are kept per owner."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sequences: dict[tuple[str, str], Session] = {}

    def routes(self) -> list[Route]:
        routes = [
            Route("/v2", self._answer(self._server), methods=["GET"]),
            Route("/v2/health/live", self._answer(self._live), methods=["GET"]),
            Route("/v2/health/ready", self._answer(self._ready), methods=["GET"]),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(model, self._answer(self._metadata), methods=["GET"]),
                Route(f"{model}/config", self._answer(self._config), methods=["GET"]),
                Route(f"{model}/ready", self._answer(self._ready), methods=["GET"]),
                Route(f"{model}/infer", self._answer(self._infer), methods=["POST"]),
            ]
        return routes

    def _answer(self, work: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Wrap a handler: errors become {"error": text}, as the protocol wants."""

        async def handler(request: Request) -> Response:
            try:
                if "model" in request.path_params:
                    self._check_model(request)
                response: Response = await work(request)
            except Full as error:
                self._service.metrics.rejections.labels(error.reason).inc()
                headers = {"retry-after": str(RETRY_SECONDS)}
                return JSONResponse({"error": str(error)}, 429, headers=headers)
            except Refused as error:
                self._service.metrics.rejections.labels(error.code).inc()
                return JSONResponse({"error": str(error)}, error.status)
            except StateError as error:  # the session has ended in the meantime
                return JSONResponse({"error": str(error)}, 503)
            except VosError as error:
                return JSONResponse({"error": str(error)}, 400)
            return response

        return handler

    def _check_model(self, request: Request) -> None:
        name = self._service.settings.model
        model, version = request.path_params["model"], request.path_params.get("version", "1")
        if model != name or version != "1":
            raise Refused(404, "no_model", f"model: wanted {name}, version 1")

    # Metadata.

    async def _server(self, _request: Request) -> Response:
        extensions = ["sequence", "binary_tensor_data", "model_configuration"]
        metadata = {"name": "vosengine", "version": __version__, "extensions": extensions}
        return JSONResponse(metadata)

    async def _live(self, _request: Request) -> Response:
        return Response(status_code=200 if self._service.worker.alive else 503)

    async def _ready(self, _request: Request) -> Response:
        return Response(status_code=200 if self._service.ready else 503)

    async def _metadata(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "name": self._service.settings.model,
                "versions": ["1"],
                "platform": "vosengine",
                "inputs": described(self._inputs(), "datatype", "UINT8", "shape"),
                "outputs": described([LABELS], "datatype", "UINT8", "shape"),
            }
        )

    async def _config(self, _request: Request) -> Response:
        method, settings = self._service.engine.method, self._service.settings
        facts = {"latency": max(0, *method.sees), "max_objects": method.max_objects}
        idle = round(1e6 * settings.close_after)
        return JSONResponse(
            {
                "name": settings.model,
                "platform": "vosengine",
                "max_batch_size": 0,
                "input": described(self._inputs(), "data_type", "TYPE_UINT8", "dims"),
                "output": described([LABELS], "data_type", "TYPE_UINT8", "dims"),
                "sequence_batching": {"max_sequence_idle_microseconds": idle},
                "parameters": {name: {"string_value": str(n)} for name, n in facts.items()},
            }
        )

    def _inputs(self) -> list[str]:
        return [FRAME, PROMPT] if self._service.engine.method.takes_mask else [FRAME]

    # Inference.

    async def _infer(self, request: Request) -> Response:
        arrived = time.perf_counter()
        owner = self._service.owner(token_of(request))
        if owner is None:
            raise Refused(401, "token", "token: is not this server's; see its --token")
        body = await read_body(request, self._service.settings.max_message)
        inference, tensors = parse(body, request.headers.get(HEADER_LENGTH))
        binary = wants_binary(inference)
        frame, prompt = self._check(tensors)
        parameters = inference.get("parameters", {})
        session = await self._session(owner, parameters)
        outcomes = await session.ask(Frame(session.expected, frame, prompt, arrived))
        if parameters.get("sequence_end", False):
            await self._service.end(session)
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise Refused(STATUS.get(outcome.code, 500), outcome.code, outcome.why)
        answers = [outcome.masks for outcome in outcomes if isinstance(outcome, Answered)]
        labels = answers[0] if answers else bytes(frame.shape[0] * frame.shape[1])
        return self._response(inference.get("id"), labels, frame.shape[:2], binary)

    def _check(self, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Check the tensors; return frame and prompt (None if all zeros). Raises InputError."""
        unknown = sorted(set(tensors) - set(self._inputs()))
        if unknown or FRAME not in tensors:
            wanted = " and ".join(self._inputs())
            raise InputError(f"inputs: wanted {wanted}, given {', '.join(tensors)[:200]}")
        frame, prompt = tensors[FRAME], tensors.get(PROMPT)
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise InputError(f"frame: wanted shape [H, W, 3], given {list(frame.shape)}")
        if frame.size > 3 * self._service.settings.max_pixels:
            raise InputError(f"frame: wanted at most {self._service.settings.max_pixels} pixels")
        if prompt is not None and prompt.shape != frame.shape[:2]:
            raise InputError(
                f"prompt: wanted the frame's size {list(frame.shape[:2])}, "
                f"given {list(prompt.shape)}"
            )
        return frame, None if prompt is None or not prompt.any() else prompt

    async def _session(self, owner: str, parameters: Mapping[str, Any]) -> Session:
        """Return the session of a request's sequence; `sequence_start` begins a new one."""
        number = parameters.get("sequence_id")
        if type(number) not in (int, str) or number in (0, "") or len(str(number)) > 128:
            raise InputError("sequence_id: wanted a nonzero number or a nonempty string")
        key = owner, str(number)
        holds, session = self._service.holds, self._sequences.get(key)
        if not parameters.get("sequence_start", False):
            if session is None or not holds(session):
                raise InputError("sequence_id: unknown; begin the sequence with sequence_start")
            return session
        if session is not None:
            await self._service.end(session)
        options = {k: v for k, v in parameters.items() if k in ("max_objects", "size", "memory")}
        wanted = Wanted.parse({**options, "policy": "all"}, self._service.settings.model)
        session, _ = await self._service.open(owner, wanted)
        session.reply = PIXELS
        self._sequences = {k: s for k, s in self._sequences.items() if holds(s)} | {key: session}
        return session

    def _response(
        self, request_id: Any, labels: bytes, shape: tuple[int, ...], binary: bool
    ) -> Response:
        output: dict[str, Any] = {"name": LABELS, "datatype": "UINT8", "shape": list(shape)}
        content: dict[str, Any] = {
            "model_name": self._service.settings.model, "model_version": "1", "outputs": [output],
        }  # fmt: skip
        if isinstance(request_id, str):
            content["id"] = request_id
        if not binary:
            output["data"] = list(labels)
            return JSONResponse(content)
        output["parameters"] = {"binary_data_size": len(labels)}
        head = json.dumps(content).encode()
        return Response(
            head + labels,
            media_type="application/octet-stream",
            headers={HEADER_LENGTH: str(len(head))},
        )


def described(names: list[str], key: str, kind: str, dims: str) -> list[dict[str, Any]]:
    """Describe tensors; `key` and `dims` are what their type and shape are called."""
    return [{"name": name, key: kind, dims: SHAPES[name]} for name in names]


def parse(body: bytes, head_length: str | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Parse a request into its JSON and its uint8 tensors by name. Raises InputError."""
    length = len(body)
    if head_length is not None:
        if not (head_length.isascii() and head_length.isdigit()) or int(head_length) > length:
            raise InputError(
                f"{HEADER_LENGTH}: wanted the JSON's length in bytes, at most {length}"
            )
        length = int(head_length)
    try:
        inference = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise InputError("body: not valid JSON") from error
    if not isinstance(inference, dict) or not isinstance(inference.get("parameters", {}), dict):
        raise InputError("body: wanted an inference request")
    tensors, place = {}, length
    for entry in _listed(inference, "inputs"):
        tensor, used = _tensor(entry, body[place:])
        place += used
        tensors[entry["name"]] = tensor
    if place != len(body):
        raise InputError(f"body: {len(body) - place} bytes after the last input")
    return inference, tensors


def wants_binary(inference: Mapping[str, Any]) -> bool:
    """Whether the labels are requested as binary data after the JSON. Raises InputError for an
    unknown output."""
    binary = bool(inference.get("parameters", {}).get("binary_data_output", False))
    for output in _listed(inference, "outputs") if "outputs" in inference else []:
        if output.get("name") != LABELS:
            raise InputError(f"outputs: wanted {LABELS}")
        parameters = output.get("parameters", {})
        if not isinstance(parameters, dict):
            raise InputError("outputs: wanted parameters to be an object")
        binary = bool(parameters.get("binary_data", binary))
    return binary


def _listed(inference: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = inference.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{name}: wanted a list of objects")
    return entries


def _tensor(entry: Mapping[str, Any], rest: bytes) -> tuple[np.ndarray, int]:
    """Read a tensor; return it and how many bytes after the JSON it used."""
    name, shape, kind = entry.get("name"), entry.get("shape"), entry.get("datatype")
    if not isinstance(name, str) or kind != "UINT8":
        raise InputError("inputs: wanted a name and datatype UINT8")
    sides = shape if isinstance(shape, list) else []
    if not 2 <= len(sides) <= 3 or not all(type(n) is int and 0 < n < 1 << 16 for n in sides):
        raise InputError(f"{name[:50]}: wanted shape [H, W, 3] or [H, W]")
    parameters = entry.get("parameters", {})
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    count = int(np.prod(sides, dtype=np.int64))
    if size is not None:
        if size != count or size > len(rest):
            raise InputError(f"{name[:50]}: wanted binary_data_size {count} and that many bytes")
        return np.frombuffer(rest, np.uint8, count).reshape(sides), count
    try:
        values = np.asarray(entry.get("data"), np.int64).ravel()
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name[:50]}: wanted data of integers") from error
    if values.size != count or (count and not 0 <= int(values.min()) <= int(values.max()) < 256):
        raise InputError(f"{name[:50]}: wanted {count} values, 0..255")
    return values.astype(np.uint8).reshape(sides), 0
