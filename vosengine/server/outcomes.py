"""Outcomes of a session's frames, one per frame, kept for clients that resend a frame."""

from __future__ import annotations

import base64
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import CapacityError, InputError, VosError
from .protocol import ANSWER, REPLIES, encode_masks, error_text, pack, text

log = logging.getLogger("vosengine.server")


class Encoded(NamedTuple):
    """Masks of an answer in the encoding `reply`."""

    reply: str
    masks: bytes


def encoded(reply: str, labels: np.ndarray, ids: tuple[int, ...]) -> Encoded:
    """Encode labels as a reply; as raw bytes if `reply` is not in REPLIES."""
    return Encoded(
        reply, encode_masks(labels, ids, reply) if reply in REPLIES else labels.tobytes()
    )


@dataclass(frozen=True)
class Answered:
    """Encoded masks of a frame.

    reply  encoding of the masks, a name in REPLIES
    info   the JSON object that follows them, without `repeated`
    """

    frame_id: int
    reply: str
    masks: bytes
    info: Mapping[str, Any]

    def message(self, *, repeated: bool = False) -> bytes | str:
        """Return the message for the client."""
        info = json.dumps({**self.info, "repeated": repeated}).encode()
        return pack(ANSWER, REPLIES[self.reply], self.frame_id, self.masks, info)


@dataclass(frozen=True)
class Held:
    """Accepted frame whose answer comes with a later one."""

    frame_id: int

    def message(self, *, repeated: bool = False) -> bytes | str:
        return text("held", frame=self.frame_id)


@dataclass(frozen=True)
class Dropped:
    """Frame replaced by a newer one."""

    frame_id: int

    def message(self, *, repeated: bool = False) -> bytes | str:
        return text("dropped", frames=[self.frame_id], reason="newer")


@dataclass(frozen=True)
class Failed:
    """Failed frame, which did not change the stream; `why` is the error text."""

    frame_id: int
    code: str
    why: str

    @classmethod
    def of(cls, frame_id: int, error: BaseException | None) -> Failed:
        """Convert an error; the text of unexpected errors is logged, not sent to the client."""
        if isinstance(error, VosError):
            code = "no_memory" if isinstance(error, CapacityError) else "unavailable"
            code = "bad_frame" if isinstance(error, InputError) else code
            return cls(frame_id, code, str(error))
        log.error("a step failed", exc_info=error)
        why = f"step: failed ({type(error).__name__}); the frame is discarded, send a new one"
        return cls(frame_id, "step_failed", why)

    def message(self, *, repeated: bool = False) -> bytes | str:
        return error_text(self.code, self.why, self.frame_id)


Outcome = Answered | Held | Dropped | Failed


class Outcomes:
    """The latest outcomes of a stream; older ones are discarded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[int, Outcome] = OrderedDict()

    def add(self, outcome: Outcome) -> None:
        """Store an outcome; it replaces an earlier one for the same frame."""
        self._kept[outcome.frame_id] = outcome
        self._kept.move_to_end(outcome.frame_id)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def get(self, frame_id: int) -> Outcome | None:
        return self._kept.get(frame_id)

    def clear(self) -> None:
        self._kept.clear()

    def answers(self) -> list[dict[str, Any]]:
        """Return the answers among the outcomes, for JSON."""
        return [
            {
                "frame_id": kept.frame_id,
                "reply": kept.reply,
                "masks": base64.b64encode(kept.masks).decode(),
                "info": dict(kept.info),
            }
            for kept in self._kept.values()
            if isinstance(kept, Answered)
        ]

    def restore(self, answers: list[dict[str, Any]]) -> None:
        """Load what `answers` returned."""
        self.clear()
        for kept in answers:
            masks = base64.b64decode(kept["masks"])
            self.add(Answered(kept["frame_id"], kept["reply"], masks, kept["info"]))
