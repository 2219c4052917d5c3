"""Batched answers: frames and objects of several streams in one pass."""

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
    from .segmenter import PendingStep, Segmenter

# Total object counts that graphs are captured for; a batch is padded with unused rows up to the
# next one.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_NO_PIXELS = torch.empty(256, 0, 0)  # `commit` reads only the number of rows


class BatchLayout(NamedTuple):
    """Row indices of a batch, on the device: streams in sequence, each in slot order, then padding.

    stream    [O] int64      stream index of every row
    by_id     [O] int64      rows sorted by id within each stream
    ids       [O] uint8      object ids of `by_id`
    first     [B + 1] int32  first row of each stream
    answered  [O] int64      position of each row in the probabilities of `finish_masks`
    """

    stream: torch.Tensor
    by_id: torch.Tensor
    ids: torch.Tensor
    first: torch.Tensor
    answered: torch.Tensor


@lru_cache(maxsize=64)
def batch_layout(
    by_slot: tuple[tuple[int, ...], ...], total: int, device: torch.device
) -> BatchLayout:
    """The layout of a batch.

    by_slot  object ids of each stream in slot order
    total    number of rows with padding
    """
    stream, by_id, ids, first, answered = [], [], [], [0], []
    for number, own in enumerate(by_slot):
        begin, ascending = first[-1], sorted(own)
        stream += [number] * len(own)
        by_id += [begin + own.index(object_id) for object_id in ascending]
        ids += ascending
        answered += [begin + number + 1 + ascending.index(object_id) for object_id in own]
        first.append(begin + len(own))
    padding = range(first[-1], total)
    stream += [0] * len(padding)
    by_id += padding
    ids += [0] * len(padding)
    answered += [row + len(by_slot) for row in padding]
    return BatchLayout(
        torch.tensor(stream, device=device),
        torch.tensor(by_id, device=device),
        torch.tensor(ids, device=device, dtype=torch.uint8),
        torch.tensor(first, device=device, dtype=torch.int32),
        torch.tensor(answered, device=device),
    )


def answer_together(
    engine: Engine, steps: Sequence[tuple[Segmenter, PendingStep]]
) -> list[Result[torch.Tensor]]:
    """Results for streams of one geometry that all `can_batch`; writes each stream's memory.

    Raises  CapacityError, before any stream has changed.
    """
    method, geometry = engine.method, steps[0][1].geometry
    streams, states = [stream for stream, _ in steps], [step.state for _, step in steps]
    for state in states:
        state.make_room(state.object_count)
    views = [View.of(step.ring, step.target, method.sees).seen for _, step in steps]
    seen = [join_features(frames) for frames in zip(*views, strict=True)]
    counts = [state.object_count for state in states]
    graphs = None if listened() else engine.together
    joined = type(states[0]).join(states)
    if graphs is not None:
        joined = joined.padded(next(size for size in BUCKETS if size >= sum(counts)))
    by_slot = tuple(stream.slots.in_slot_order for stream in streams)
    layout = batch_layout(by_slot, joined.object_count, engine.device)

    def work(inputs: tuple[list[Any], BatchLayout, tuple[torch.Tensor, ...]]) -> Any:
        seen, layout, tables = inputs
        return _segment_batch(method, seen, layout, joined.at(tables, layout.stream), geometry)

    inputs = seen, layout, joined.tables
    if graphs is not None:
        name = geometry, len(steps), joined.object_count, engine.pools.version
        outputs = graphs.run(name, work, inputs, shared=True)
    else:
        outputs = work(inputs)
    return _commit_batch(method, steps, counts, geometry, *outputs)


def _segment_batch(
    method: Any, seen: list[Any], layout: BatchLayout, state: Any, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Segment, post-process and observe, on tensors only so that a graph can capture it.

    Returns logits [O, h, w] by id, labels [B, H, W] uint8, and (stride, observations [O, ...]).
    """
    with span("segment"):
        scores = method.segment(seen, state)
    logits, region = scores.logits[layout.by_id], geometry.region(scores.stride)
    labels, probabilities = finish_masks(
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
    # The first stream's background stands for all: batched methods do not read it.
    rows = torch.cat((probabilities[:1], probabilities[layout.answered]))
    masks = Masks(pad(rows, geometry), streams=layout.stream)
    return logits, labels, (scores.stride, method.observe(seen, masks, state))


def _commit_batch(
    method: Any,
    steps: Sequence[tuple[Segmenter, PendingStep]],
    counts: list[int],
    geometry: Geometry,
    logits: torch.Tensor,
    labels: torch.Tensor,
    observed: tuple[int, Any],
) -> list[Result[torch.Tensor]]:
    """Write each stream's observations to its memory; returns the Results, with copied tensors."""
    stride, observations = observed
    results = []
    begin = 0
    for number, ((stream, step), count) in enumerate(zip(steps, counts, strict=True)):
        own = slice(begin, begin + count)
        begin += count
        with span("remember"):
            method.commit(rows_of(observations, own), Masks(_NO_PIXELS[: 1 + count]), step.state)
        output = MaskOutput(logits[own].clone(), geometry.region(stride), stream.rows(), None)
        results.append(output.result(labels[number].clone(), step.target, geometry))
    return results
