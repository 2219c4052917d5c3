"""One answer for several streams at once: their frames, and all their objects, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..kernels.spans import listened, span
from ..models.method import join_features, join_masks, rows_of, split_scores
from ..types import Geometry, Masks, Result
from .postprocess import Arrangement, Canvas, compose
from .ring import View

if TYPE_CHECKING:
    from .engine import Engine
    from .segmenter import Segmenter, Turn


def answer_together(
    engine: Engine, turns: Sequence[tuple[Segmenter, Turn]]
) -> list[Result[torch.Tensor]]:
    """The answers of streams of one geometry of which all `may_join`; each has remembered its
    frame afterwards. Raises before any stream has changed."""
    method = engine.method
    streams, geometry = [stream for stream, _ in turns], turns[0][1].geometry
    states = [turn.state for _, turn in turns]
    counts = [state.object_count for state in states]
    for state in states:
        state.make_room(state.object_count)
    views = [View.of(turn.ring, turn.target, method.sees).seen for _, turn in turns]
    seen = [join_features(each) for each in zip(*views, strict=True)]
    arranged = [stream.arranged() for stream in streams]
    joined = type(states[0]).join(states)
    index = [number for number, count in enumerate(counts) for _ in range(count)]
    rows = torch.tensor(index, device=engine.device)

    def work(given: tuple[Any, ...]) -> Any:
        seen, rows, tables, arranged = given
        state = joined.at(tables)
        return _work(method, seen, rows, state, arranged, counts, geometry)

    given = seen, rows, joined.tables, arranged
    if engine.together is None or listened():
        found = work(given)
    else:
        version = engine.pools.version
        found = engine.together.run((geometry, tuple(counts), version), work, given)
    canvases, labels, observed = found
    results = []
    for number, (_, turn) in enumerate(turns):
        mine = None if observed is None else rows_of(observed, _part(counts, number))
        with span("remember"):
            method.commit(mine, Masks(_NOTHING[: 1 + counts[number]]), turn.state)
        canvas: Canvas = canvases[number].copied(arranged[number])
        results.append(canvas.result(labels[number].clone(), turn.target, geometry))
    return results


def _work(
    method: Any,
    seen: list[Any],
    rows: torch.Tensor,
    state: Any,
    arranged: list[Arrangement],
    counts: list[int],
    geometry: Geometry,
) -> tuple[list[Canvas], list[torch.Tensor], Any]:
    """All but the writing: of tensors alone, so that it may be captured."""
    by_object = [rows_of(each, rows) for each in seen]
    with span("segment"):
        scores = method.segment(by_object, state)
    found = [
        compose(part, own, None, geometry)
        for part, own in zip(split_scores(scores, counts), arranged, strict=True)
    ]
    masks = join_masks([each.probabilities for _, _, each in found], rows)
    observed = method.observe(by_object, masks, state)
    return [canvas for canvas, _, _ in found], [labels for _, labels, _ in found], observed


def _part(counts: Sequence[int], number: int) -> slice:
    """The rows of one stream's objects."""
    first = sum(counts[:number])
    return slice(first, first + counts[number])


_NOTHING = torch.empty(256, 0, 0)  # what `commit` counts objects by; it looks at no pixel
