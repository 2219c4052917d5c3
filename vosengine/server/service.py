"""Session manager: access by token, limits, parking and expiry."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..engine.engine import Engine
from ..errors import StateError, VosError
from .metrics import Metrics
from .protocol import CLOSED, RESTARTS
from .resident import Shared
from .session import Session
from .settings import Settings, Wanted
from .store import Saved, Store
from .worker import STEP_ERRORS, Worker

log = logging.getLogger("vosengine.server")
STATES = ("live", "idle", "parked")
RESTS_AFTER = 2.0  # seconds without a frame before a stream may be parked for another
RETRY_SECONDS = 5
PERIOD = 1.0  # seconds between checks for idle sessions
MOST_TOKENS = 4  # per session: its own and those issued on resume


class Full(VosError):
    """A limit on sessions or memory is reached; `reason` names it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unknown(VosError):
    """The session does not exist or the token has no access to it."""


def hashed(token: str | None) -> str:
    """Hash a token; "" for None, which matches no token."""
    return "" if token is None else hashlib.sha256(token.encode()).hexdigest()


def holds_token(session: Session, digest: str) -> bool:
    """Whether `digest` is that of one of the session's own tokens."""
    return sum(hmac.compare_digest(token, digest) for token in session.tokens) > 0


async def _wait(work: list[Coroutine[Any, Any, None]], seconds: float) -> None:
    """Do all of `work` at a time; what takes longer than `seconds` is cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()


class Service:
    """The sessions of one engine.

    engine   None: created from the settings
    on_death called in another thread when the engine thread has died: the server must end

    Raises  ConfigError, DeviceError, WeightsError; OutputError if state_dir cannot be created.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine | None = None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.tokens = settings.tokens or (secrets.token_urlsafe(24),)
        self._owners = [hashed(token) for token in self.tokens]
        self.engine = engine or Engine(
            settings.model,
            weights=settings.weights,
            device=settings.device,
            precision=settings.precision,
            max_batch=settings.max_batch,
            memory_budget=settings.max_memory,
        )
        self.metrics = Metrics(self._by_state, self._memory)
        self._sessions: dict[str, Session] = {}
        self._opening = 0
        self._stack = ExitStack()
        here = self._stack.enter_context
        self.store = Store(
            settings.state_dir or Path(here(TemporaryDirectory(prefix="vosengine-")))
        )
        self.pool = here(ThreadPoolExecutor(2, "images"))
        self.worker = Worker(self.engine, self.metrics, self.pool, on_death)
        self.prompts = here(ThreadPoolExecutor(1, "prompts"))
        self._shared = Shared(
            settings,
            self.worker,
            self.metrics,
            self.store,
            self.pool,
            here(ThreadPoolExecutor(1, "disk")),
            self._make_room,
            self._relieve,
        )
        self.ready = self.closing = False
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the saved sessions and start the worker."""
        self.worker.start()
        for session_id in self.store.list():
            try:
                saved, _ = self.store.load(session_id)
            except StateError as error:
                log.warning("%s: skipped: %s", session_id, error)
                continue
            if saved.model == self.settings.model:
                self._sessions[saved.id] = Session(self._shared, saved, None)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self.ready = True

    async def close(self) -> None:
        """Stop accepting frames, finish and deliver those in progress, save all streams and close
        all connections, within `stop_within` seconds. Idempotent."""
        if self.closing:
            return
        self.closing, self.ready = True, False
        if self._keeper is not None:
            self._keeper.cancel()
        sessions = sorted(self._sessions.values(), key=lambda session: -session.used)
        within = self.settings.stop_within
        await _wait([self._retire(session) for session in sessions], 0.7 * within)
        listeners = [session.listener for session in sessions if session.listener is not None]
        for session in sessions:
            session.stop("restart", RESTARTS)
        await _wait([listener.finished() for listener in listeners], 0.1 * within)
        self._sessions.clear()

    async def stop(self) -> None:
        """Close, then stop the threads and remove the temporary folder."""
        await self.close()
        await asyncio.get_running_loop().run_in_executor(None, self.worker.stop)
        self._stack.close()

    # Access.

    def owner(self, token: str | None) -> str | None:
        """Return the hash of a server token; None for any other token."""
        digest = hashed(token)
        return next((own for own in self._owners if hmac.compare_digest(own, digest)), None)

    def known(self, token: str | None) -> bool:
        """Whether the token is a server token or a token of any session."""
        digest = hashed(token)
        holds = [holds_token(session, digest) for session in self._sessions.values()]
        return self.owner(token) is not None or any(holds)

    def find(self, session_id: str, token: str | None) -> Session:
        """Find a session by id, given one of its tokens or the server token that created it. Raises
        Unknown."""
        session, digest = self._sessions.get(session_id), hashed(token)
        if session is None or not (
            holds_token(session, digest) or hmac.compare_digest(session.owner, digest)
        ):
            raise Unknown("session: no session has this id for this token; create a new one")
        return session

    def owned(self, token: str | None) -> list[Session]:
        """List the sessions that a token may use."""
        digest = hashed(token)
        return [s for s in self._sessions.values() if s.owner == digest or holds_token(s, digest)]

    def holds(self, session: Session) -> bool:
        """Whether a session has not ended."""
        return self._sessions.get(session.id) is session

    # Opening and ending.

    async def open(self, owner: str, wanted: Wanted) -> tuple[Session, str]:
        """Open a session; return it with its token. Raises ConfigError for a bad option, Full."""
        if self.closing:
            raise Full("closing", "session: the server is shutting down; try again later")
        mine = sum(s.owner == owner for s in self._sessions.values())
        most = self.settings.sessions_per_token
        if most is not None and mine + self._opening >= most:
            raise Full(
                "sessions",
                f"session: wanted at most {most} for this token, given {mine}; end one first",
            )
        if len(self._sessions) + self._opening >= self._most:
            raise Full(
                "sessions", f"session: the limit of {self._most} is reached; try again later"
            )
        self._opening += 1
        try:
            await self._make_room()
            options = wanted.options
            stream = await asyncio.wrap_future(
                self.worker.call(lambda: self.engine.open(**options))
            )
        finally:
            self._opening -= 1
        token = secrets.token_urlsafe(24)
        saved = Saved(
            id=secrets.token_hex(16),
            model=self.settings.model,
            owner=owner,
            tokens=[hashed(token)],
            policy=wanted.policy,
            reply=wanted.reply,
            options=options,
        )
        session = self._sessions[saved.id] = Session(self._shared, saved, stream)
        return session, token

    async def resume(self, token: str | None, session_id: str) -> tuple[Session, str]:
        """Resume a session; return it with a token: the one given, or a new one if that is the
        server's. Raises Unknown; StateError if the stream cannot be restored here; Full."""
        session = self.find(session_id, token)
        await session.awake()
        if token is not None and holds_token(session, hashed(token)):
            return session, token
        fresh = secrets.token_urlsafe(24)
        session.tokens = [*session.tokens[:1], *session.tokens[1:][2 - MOST_TOKENS :]]
        session.tokens.append(hashed(fresh))
        return session, fresh

    async def end(self, session: Session) -> None:
        """End a session and disconnect its client."""
        if self._sessions.pop(session.id, None) is not None:
            await session.end("closed", CLOSED)

    @property
    def _most(self) -> int:
        return self.settings.max_sessions + self.settings.parked_sessions

    def _by_state(self) -> dict[str, int]:
        counts = Counter(session.state for session in self._sessions.values())
        return {state: counts[state] for state in STATES}

    def _memory(self) -> int:
        return sum(session.home.memory_bytes for session in self._sessions.values())

    async def _make_room(self) -> None:
        """Make room for another stream: park the longest-idle streams as needed. Raises Full."""
        while (lacks := self._lacks()) is not None:
            if self.closing or not await self._relieve():
                raise Full(lacks, f"session: no room for another ({lacks}); try again later")

    def _lacks(self) -> str | None:
        """Return the limit that another stream would exceed, None if it fits."""
        held = sum(s.home.stream is not None for s in self._sessions.values())
        if held + max(1, self._opening) > self.settings.max_sessions:
            return "sessions"
        used, most = self.worker.used_bytes, self.settings.max_memory
        if (
            most is not None and used + used / max(1, held) > most
        ):  # estimate: the mean of the others
            return "memory"
        return None

    async def _relieve(self) -> bool:
        """Park the longest-idle stream; False if all are in use."""
        now = time.monotonic()
        resting = [
            session
            for session in self._sessions.values()
            if session.home.stream is not None
            and not session.busy
            and now - session.used >= RESTS_AFTER
        ]
        if not resting:
            return False
        await min(resting, key=lambda session: session.used).park()
        return True

    async def _retire(self, session: Session) -> None:
        try:
            await session.retire(save=self.settings.state_dir is not None)
        except STEP_ERRORS as error:
            log.error("a stream could not be saved: %s", error)

    # Idle sessions.

    async def _keep(self) -> None:
        """Park and end idle sessions, periodically."""
        period = min(PERIOD, self.settings.park_after / 2, self.settings.close_after / 2)
        while True:
            await asyncio.sleep(max(0.02, period))
            now = time.monotonic()
            for session in list(self._sessions.values()):
                rests = now - session.used
                if session.busy:
                    continue
                if rests >= self.settings.close_after:
                    await self.end(session)
                elif rests >= self.settings.park_after and session.home.stream is not None:
                    await self._park(session)

    async def _park(self, session: Session) -> None:
        try:
            await session.park()
        except STEP_ERRORS as error:
            if self.holds(session):  # else it was ended in the meantime
                log.error("a stream could not be parked: %s", error)
                session.used = time.monotonic()  # try again after the same time
