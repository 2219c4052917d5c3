"""Scheduling: which of an engine's pending frames run next, in one batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

S = TypeVar("S", bound=Hashable)


def next_batch(pending: Mapping[S, Hashable | None], max_batch: int) -> list[S]:
    """The streams whose frames run next, in order of arrival; empty if no frame is pending.

    First in, first out; never waits to fill a batch.

    pending    batching key of each stream's pending frame, in order of arrival: frames of equal
               keys may share a batch, a frame without one (None) runs alone
    max_batch  maximum number of frames per batch
    """
    if not pending:
        return []
    first, key = next(iter(pending.items()))
    if key is None:
        return [first]
    return [stream for stream, other in pending.items() if other == key][:max_batch]
