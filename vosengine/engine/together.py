"""One answer for several streams at once: their frames, and all their objects, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..frames import pad
from ..kernels import finish_masks
from ..kernels.spans import listened, span
from ..models.method import join_features, rows_of
from ..types import Geometry, Masks, Result
from .postprocess import MaskOutput
from .ring import View

if TYPE_CHECKING:
    from .engine import Engine
    from .segmenter import Segmenter, Turn

# Graphs are captured for so many objects, all streams' together; a batch has rows without meaning
# up to the next of these numbers.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_NOTHING = torch.empty(256, 0, 0)  # what `commit` counts objects by; it looks at no pixel


class Layout(NamedTuple):
    """Which rows of a batch are whose, on the device. Objects of a stream lie in order of slot, the
    streams one after another, and rows without meaning last.

    stream    [O] int64     of every row
    by_id     [O] int64     the rows of each stream in ascending order of id
    ids       [O] uint8     of those
    first     [B + 1] int32 where each stream's objects begin
    answered  [O] int64     where each row's probabilities lie in what `finish_masks` returns
    """

    stream: torch.Tensor
    by_id: torch.Tensor
    ids: torch.Tensor
    first: torch.Tensor
    answered: torch.Tensor


@lru_cache(maxsize=64)
def layout_of(by_slot: tuple[tuple[int, ...], ...], total: int, device: torch.device) -> Layout:
    """by_slot: of each stream the ids, in order of slot; total: rows, with those of no meaning."""
    stream, by_id, ids, first, answered = [], [], [], [0], []
    for number, own in enumerate(by_slot):
        begin, ascending = first[-1], sorted(own)
        stream += [number] * len(own)
        by_id += [begin + own.index(each) for each in ascending]
        ids += ascending
        answered += [begin + number + 1 + ascending.index(each) for each in own]
        first.append(begin + len(own))
    spare = range(first[-1], total)
    stream += [0] * len(spare)
    by_id += spare
    ids += [0] * len(spare)
    answered += [row + len(by_slot) for row in spare]
    return Layout(
        torch.tensor(stream, device=device),
        torch.tensor(by_id, device=device),
        torch.tensor(ids, device=device, dtype=torch.uint8),
        torch.tensor(first, device=device, dtype=torch.int32),
        torch.tensor(answered, device=device),
    )


def answer_together(
    engine: Engine, turns: Sequence[tuple[Segmenter, Turn]]
) -> list[Result[torch.Tensor]]:
    """The answers of streams of one geometry of which all `may_join`; each has remembered its
    frame afterwards. Raises before any stream has changed."""
    method, geometry = engine.method, turns[0][1].geometry
    streams, states = [stream for stream, _ in turns], [turn.state for _, turn in turns]
    for state in states:
        state.make_room(state.object_count)
    views = [View.of(turn.ring, turn.target, method.sees).seen for _, turn in turns]
    seen = [join_features(each) for each in zip(*views, strict=True)]
    counts = [state.object_count for state in states]
    graphs = None if listened() else engine.together
    joined = type(states[0]).join(states)
    if graphs is not None:
        joined = joined.padded(next(size for size in BUCKETS if size >= sum(counts)))
    by_slot = tuple(stream.slots.in_slot_order for stream in streams)
    layout = layout_of(by_slot, joined.object_count, engine.device)

    def work(given: tuple[list[Any], Layout, tuple[torch.Tensor, ...]]) -> Any:
        seen, layout, tables = given
        return _work(method, seen, layout, joined.at(tables, layout.stream), geometry)

    given = seen, layout, joined.tables
    if graphs is not None:
        name = geometry, len(turns), joined.object_count, engine.pools.version
        found = graphs.run(name, work, given, shared=True)
    else:
        found = work(given)
    return _settle(method, turns, counts, geometry, *found)


def _work(
    method: Any, seen: list[Any], layout: Layout, state: Any, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """All but the writing, of tensors alone, so that it may be captured: logits [O, h, w] by id,
    labels [B, H, W] and what was observed [O, ...]."""
    with span("segment"):
        scores = method.segment(seen, state)
    logits, region = scores.logits[layout.by_id], geometry.region(scores.stride)
    labels, found = finish_masks(
        logits,
        layout.ids,
        size=geometry.resized,
        region=region,
        probabilities=True,
        first=layout.first,
    )
    if geometry.resized != geometry.frame:
        labels, _ = finish_masks(
            logits, layout.ids, size=geometry.frame, region=region, first=layout.first
        )
    # The background is that of the first stream: who takes several does not ask for it.
    rows = torch.cat((found[:1], found[layout.answered]))
    masks = Masks(pad(rows, geometry), streams=layout.stream)
    return logits, labels, (scores.stride, method.observe(seen, masks, state))


def _settle(
    method: Any,
    turns: Sequence[tuple[Segmenter, Turn]],
    counts: list[int],
    geometry: Geometry,
    logits: torch.Tensor,
    labels: torch.Tensor,
    observed: tuple[int, Any],
) -> list[Result[torch.Tensor]]:
    """Each stream remembers what is its own, and has its result, with tensors of its own."""
    stride, noticed = observed
    results = []
    begin = 0
    for number, ((stream, turn), count) in enumerate(zip(turns, counts, strict=True)):
        mine = slice(begin, begin + count)
        begin += count
        with span("remember"):
            method.commit(rows_of(noticed, mine), Masks(_NOTHING[: 1 + count]), turn.state)
        region = geometry.region(stride)
        output = MaskOutput(logits[mine].clone(), region, stream.rows(), None)
        results.append(output.result(labels[number].clone(), turn.target, geometry))
    return results
