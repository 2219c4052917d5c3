"""Saved sessions on disk: one file per session, written atomically."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OutputError, StateError
from ..files import write_whole

SESSION_ID = re.compile(r"[0-9a-f]{32}")
_MAGIC = b"vosengine session 1\n"


@dataclass(frozen=True)
class Saved:
    """Saved session, without its stream.

    owner    sha256 of the token that created it, in hex
    tokens   sha256 of its own tokens
    options  for `Engine.open`
    indices  (engine frame index, client frame id) of the frames not yet answered
    answers  from `Outcomes.answers`
    """

    id: str
    model: str
    owner: str
    tokens: list[str]
    policy: str
    reply: str
    options: dict[str, Any]
    next_frame: int = 0
    ids: list[int] = field(default_factory=list)
    frames: int = 0
    dropped: int = 0
    size: list[int] | None = None
    indices: list[tuple[int, int]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


class Store:
    """Folder of saved sessions.

    Raises  OutputError if it cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be created ({error.strerror}); choose another --state-dir"
            ) from error

    def save(self, saved: Saved, snapshot: bytes) -> None:
        """Write a session; replaces its earlier file. Raises OutputError."""
        described = json.dumps(asdict(saved)).encode()
        parts = len(described).to_bytes(8, "little") + described + snapshot
        write_whole(self._path(saved.id), _MAGIC + hashlib.sha256(parts).digest() + parts)

    def load(self, session_id: str) -> tuple[Saved, bytes]:
        """Load a session and its stream's snapshot. Raises StateError if the file is missing,
        damaged or of another version."""
        path = self._path(session_id)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StateError(f"session: its file cannot be read ({error.strerror})") from error
        start = len(_MAGIC)
        parts = data[start + 32 :]
        if data[:start] != _MAGIC or hashlib.sha256(parts).digest() != data[start : start + 32]:
            raise StateError("session: its file is damaged or of another version")
        length = int.from_bytes(parts[:8], "little")
        described = json.loads(parts[8 : 8 + length])
        return Saved(**described), parts[8 + length :]

    def remove(self, session_id: str) -> None:
        """Remove the file of a session, if any."""
        self._path(session_id).unlink(missing_ok=True)

    def list(self) -> list[str]:
        """List the ids of all sessions in the folder."""
        names = (path.stem for path in self.folder.glob("*.session"))
        return sorted(name for name in names if SESSION_ID.fullmatch(name))

    def _path(self, session_id: str) -> Path:
        if not SESSION_ID.fullmatch(session_id):
            raise StateError("session: not a valid session id")
        return self.folder / f"{session_id}.session"
