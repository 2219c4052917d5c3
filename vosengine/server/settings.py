"""Settings of the server, and the session options a client may request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .protocol import REPLIES

MIB = 1 << 20
POLICIES = ("latest", "all")
MOST_OBJECTS = 32  # limit for a client: memory is allocated for all of them
LEAST: dict[str, float] = {
    "max_sessions": 1, "parked_sessions": 0, "window": 1, "max_pixels": 32 * 32,
    "max_message": 1024, "autosave": 0, "park_after": 0.0, "close_after": 0.0,
}  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,128}")  # safe in headers, URLs and subprotocols
_HOST = re.compile(r"[A-Za-z0-9.:-]{1,253}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,260}")


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    model, weights, device, precision, max_batch   as in `vosengine.Engine`
    host, port          address to listen on
    tokens              each may create sessions and sees only its own; empty: one random token
    max_sessions        maximum streams in memory; `parked_sessions`: maximum on disk
    sessions_per_token  maximum sessions of one token, parked ones included; None: no limit
    max_memory          maximum bytes of all streams' pages; None: no limit
    window              maximum unanswered frames of a client
    max_message         maximum bytes of a WebSocket message or a request body
    max_pixels          maximum pixels of a frame
    state_dir           folder for saved streams; None: a temporary folder, removed at the end
    autosave            save a stream every that many answered frames; 0: never. Needs state_dir
    park_after          seconds without a frame before a stream is parked on disk
    close_after         seconds without a frame before a session ends
    stop_within         seconds for a graceful shutdown
    ping_timeout        seconds to wait for a pong
    allow_origins       other web origins that may connect, such as https://example.org
    allow_hosts         host names of the server besides the loopback names

    Raises  ConfigError.
    """

    model: str
    weights: str | Path | None = None
    device: str = "auto"
    precision: str = "auto"
    max_batch: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[str, ...] = ()
    max_sessions: int = 64
    parked_sessions: int = 1024
    sessions_per_token: int | None = None
    max_memory: int | None = None
    window: int = 2
    max_message: int = 4 * MIB
    max_pixels: int = 3840 * 2160
    state_dir: Path | None = None
    autosave: int = 0
    park_after: float = 60.0
    close_after: float = 3600.0
    stop_within: float = 10.0
    ping_timeout: float = 60.0
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for token in self.tokens:
            if not _TOKEN.fullmatch(token):
                raise ConfigError("token: wanted 1 to 128 letters, digits and . _ ~ -")
        for host in self.allow_hosts:
            if not _HOST.fullmatch(host):
                raise ConfigError(f"allow-host: wanted a name such as example.org, given {host!r}")
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"allow-origin: wanted an origin such as https://example.org, given {origin!r}"
                )
        for name, least in LEAST.items():
            if (given := getattr(self, name)) < least:
                raise ConfigError(f"{name}: wanted {least} or more, given {given}")
        if self.autosave and self.state_dir is None:
            raise ConfigError("autosave: needs --state-dir DIR, the folder for saved streams")


@dataclass(frozen=True)
class Wanted:
    """Session options of a client: the validated body of POST /v1/sessions.

    options      for `Engine.open`: max_objects, size, memory
    resume_from  id of the session to resume; None: a new session
    """

    options: dict[str, Any]
    policy: str
    reply: str
    resume_from: str | None

    @classmethod
    def parse(cls, body: Any, model: str) -> Wanted:
        """Validate a JSON body. Raises ConfigError."""
        if not isinstance(body, Mapping):
            raise ConfigError("body: wanted a JSON object, such as {}")
        known = {"model", "max_objects", "size", "memory", "policy", "reply", "resume_from"}
        unknown = sorted(str(name) for name in set(body) - known)
        if unknown:
            shown = ", ".join(unknown)[:200]
            raise ConfigError(f"body: unknown: {shown}; wanted some of {', '.join(sorted(known))}")
        if body.get("model") not in (None, model):
            raise ConfigError(f"model: this server runs {model}; leave model out or set it to that")
        policy, reply = _one_of(body, "policy", POLICIES), _one_of(body, "reply", tuple(REPLIES))
        resume = body.get("resume_from")
        if resume is not None and not isinstance(resume, str):
            raise ConfigError("resume_from: wanted a session id")
        return cls(_options(body), policy, reply, resume)


def _one_of(body: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    """Return an option among `known`, by default the first. Raises ConfigError."""
    value: str | None = body.get(name)
    if value is None:
        return known[0]
    if value not in known:
        raise ConfigError(f"{name}: wanted {' or '.join(known)}")
    return value


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Extract the options for `Engine.open`; types are checked here, values by the engine."""
    options: dict[str, Any] = {}
    objects = body.get("max_objects")
    if objects is not None:
        if type(objects) is not int or not 1 <= objects <= MOST_OBJECTS:
            raise ConfigError(f"max_objects: wanted 1..{MOST_OBJECTS}")
        options["max_objects"] = objects
    size = body.get("size")
    if size is not None:
        sides = size if isinstance(size, list) and len(size) == 2 else [size]
        if size != "native" and not all(type(x) is int and 32 <= x <= 4096 for x in sides):
            raise ConfigError('size: wanted 32..4096, [height, width] or "native"')
        options["size"] = tuple(size) if isinstance(size, list) else size
    memory = body.get("memory")
    if memory is not None:
        if not isinstance(memory, str) or len(memory) > 32:
            raise ConfigError("memory: wanted every-N, all or afb")
        options["memory"] = memory
    return options
