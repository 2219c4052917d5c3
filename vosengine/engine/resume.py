"""Serialisation of a Segmenter's stream, for `snapshot`, `restore`, `save_state`, `load_state`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..ambient import own_settings
from ..proposals import StatefulSource
from ..runtime import in_layout
from .postprocess import make_prompt
from .ring import Pending
from .snapshot import SavedStream, check_source, pack, unpack
from .stream import geometry_of

if TYPE_CHECKING:
    from .segmenter import Segmenter


@own_settings()
def pack_stream(segmenter: Segmenter) -> bytes:
    """Serialise the segmenter's stream."""
    state, source = segmenter.state, _source(segmenter)
    return pack(
        SavedStream(
            identity=_identity(segmenter),
            book=segmenter.saved(),
            state={} if state is None else state.tensors(),
            ring=[
                (
                    held.index,
                    held.features._asdict(),
                    None if held.prompt is None else held.prompt.labels,
                )
                for held in segmenter.ring
            ],
            source=None if source is None else source.tensors(),
        )
    )


@own_settings()
def restore_stream(segmenter: Segmenter, data: bytes, where: str) -> None:
    """Replace the segmenter's stream with a serialised one.

    where  the name of `data` in messages

    Raises  StateError, before any change.
    """
    stream = unpack(data, where, _identity(segmenter), segmenter.device)
    source, method = _source(segmenter), segmenter.method
    check_source(where, stream, source)
    state, geometry = None, geometry_of(stream.book)
    if geometry is not None:
        state = segmenter.begin_state(geometry)
        state.restore(stream.state, len(stream.book["ids"]))
    ring = [
        Pending(
            index,
            method.features(**in_layout(features, segmenter.engine)),
            None if labels is None else make_prompt(labels, segmenter.device),
        )
        for index, features, labels in stream.ring
    ]
    if source is not None and stream.source is not None:
        source.restore(stream.source)
    segmenter.reset()
    segmenter.state = state
    segmenter.take_over(stream.book, ring)


def _source(segmenter: Segmenter) -> StatefulSource | None:
    """The segmenter's proposal source if it has state, else None."""
    return segmenter.proposals if isinstance(segmenter.proposals, StatefulSource) else None


def _identity(segmenter: Segmenter) -> dict[str, Any]:
    """The settings that a saved stream and the segmenter must have in common."""
    memory = {} if segmenter.memory is None else {"memory": asdict(segmenter.memory)}
    return {
        "model": segmenter.model,
        "weights": segmenter.card.identity,
        "config": asdict(segmenter.method.config) | memory,
        "precision": str(segmenter.dtype),
        "size": segmenter.size,
        "max_objects": segmenter.max_objects,
        "online": segmenter.online,
    }
