"""Serialisation of a Segmenter's stream, for `snapshot`, `restore`, `save_state`, `load_state`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..ambient import own_settings
from ..models.method import tensors_under
from ..proposals import StatefulSource
from ..runtime import in_layout
from .postprocess import make_prompt
from .ring import Pending
from .snapshot import check_identity, check_source, pack, unpack
from .stream import geometry_of

if TYPE_CHECKING:
    from .segmenter import Segmenter


@own_settings()
def pack_stream(segmenter: Segmenter) -> bytes:
    """Serialise the segmenter's stream."""
    state, source = segmenter.state, _source(segmenter)
    parts = {
        "state": {} if state is None else state.tensors(),
        "source": {} if source is None else source.tensors(),
        **{f"ring/{held.index}": held.features._asdict() for held in segmenter.ring},
    }
    tensors = {f"{part}/{name}": x for part, own in parts.items() for name, x in own.items()}
    for held in segmenter.ring:
        if held.prompt is not None:
            tensors[f"prompt/{held.index}"] = held.prompt.labels
    described = {
        "identity": _identity(segmenter),
        **segmenter.saved(),
        "ring": [held.index for held in segmenter.ring],
        "source": source is not None,
    }
    return pack(described, tensors)


@own_settings()
def restore_stream(segmenter: Segmenter, data: bytes, where: str) -> None:
    """Replace the segmenter's stream with a serialised one.

    where  the name of `data` in messages

    Raises  StateError, before any change.
    """
    book, tensors = unpack(data, where)
    check_identity(where, book["identity"], _identity(segmenter))
    source, method = _source(segmenter), segmenter.method
    check_source(where, book["source"], source)
    tensors = {name: tensor.to(segmenter.device) for name, tensor in tensors.items()}
    state, geometry = None, geometry_of(book)
    if geometry is not None:
        state = segmenter.begin_state(geometry)
        state.restore(tensors_under("state/", tensors), len(book["ids"]))
    ring = []
    for index in book["ring"]:
        features = in_layout(tensors_under(f"ring/{index}/", tensors), segmenter.engine)
        labels = tensors.get(f"prompt/{index}")
        prompt = None if labels is None else make_prompt(labels, segmenter.device)
        ring.append(Pending(index, method.features(**features), prompt))
    if source is not None:
        source.restore(tensors_under("source/", tensors))
    segmenter.reset()
    segmenter.state = state
    segmenter.take_over(book, ring)


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
