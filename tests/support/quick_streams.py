"""Shared by the tests of every model: fast Segmenters, streams, and checks of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from conftest import make, object_ids

from vosengine.engine.segmenter import Segmenter
from vosengine.memory import MemoryBank
from vosengine.memory.pages import FIRST_PAGES
from vosengine.models.method import State
from vosengine.proposals import Proposals, boxes_of
from vosengine.types import Result
from vosengine.zoo.registry import entry

# Few iterations; a tracker discovers at most three objects, which leaves capacity for prompts.
QUICK: dict[str, dict[str, Any]] = {
    "dmn_aoa": {"matching_steps": 5},
    "target_aware": {
        "max_tracks": 3,
        "augmentations": 0,
        "first_iterations": (1,),
        "later_iterations": (1,),
    },
}
SIZE = 48, 64


def rectangle(top: int, left: int, height: int, width: int, object_id: int = 1) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = object_id
    return mask


def quarters(frame: torch.Tensor, index: int) -> Proposals:
    """Stateless proposal source: most of each quarter of the frame."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    masks = torch.zeros(4, *frame.shape[:2], dtype=torch.bool, device=frame.device)
    for number, mask in enumerate(masks):
        top, left = height * (number // 2), width * (number % 2)
        mask[top + 2 : top + height - 2, left + 3 : left + width - 3] = True
    return Proposals(
        boxes_of(masks), masks, masks.new_tensor((0.9, 0.8, 0.7, 0.6), dtype=torch.float32)
    )


def nothing(frame: torch.Tensor, index: int) -> Proposals:
    """Proposal source without proposals."""
    masks = torch.zeros(0, *frame.shape[:2], dtype=torch.bool)
    return Proposals(boxes_of(masks), masks, torch.zeros(0))


def begin(model: str, **options: Any) -> Segmenter:
    """Return a tiny Segmenter; a model that requires proposals uses the source `quarters`."""
    if entry(model).build.needs_proposals:
        options = {"proposals": quarters, **options}
    changes = {**QUICK.get(model, {}), **options.pop("changes", {})}
    return make(model, changes=changes, **{"max_objects": 8, **options})


def stream_state(stream: Any) -> Any:
    """What a Segmenter or a source of proposals remembers of its stream. No public name leads
    there; tests that look into a memory do it through this one."""
    return stream.state


def graphs_of(segmenter: Segmenter) -> list[Any]:
    """Caches of captured graphs, the engine's first."""
    caches = segmenter.runs_on._encoding, segmenter._graphs
    return [cache for cache in caches if cache is not None]


def captured_by(segmenter: Segmenter) -> int:
    """Number of graphs captured by the stream and its engine."""
    return sum(cache.captured for cache in graphs_of(segmenter))


def play(
    segmenter: Segmenter, frames: np.ndarray, prompts: Mapping[int, np.ndarray] | None = None
) -> list[Result]:
    """Return all results of these frames, including those of `flush`; prompts, by frame index, are
    omitted for a model that takes none."""
    masks = (prompts or {}) if segmenter.method.takes_mask else {}
    answers = [segmenter.step(frame, masks.get(index)) for index, frame in enumerate(frames)]
    return [answer for answer in (*answers, *segmenter.flush()) if answer is not None]


def assert_sound(result: Result, size: tuple[int, int] = SIZE) -> None:
    """Assert that probabilities are finite and sum to 1, and that labels have the greatest."""
    rows = result.probabilities
    assert result.labels.dtype == torch.uint8
    assert rows.dtype == torch.float32
    assert rows.shape == (1 + len(result.ids), *size)
    assert rows.isfinite().all()
    torch.testing.assert_close(rows.sum(dim=0), torch.ones(size))
    row = torch.zeros(256, dtype=torch.int64)
    row[torch.tensor(result.ids, dtype=torch.int64)] = torch.arange(1, 1 + len(result.ids))
    # Odds that differ in the last bit may round to equal probabilities: the label has the greatest
    # one, but not always the first of equal ones.
    assert torch.equal(rows.gather(0, row[result.labels.long()][None])[0], rows.amax(dim=0))
    assert object_ids(result.numpy()) <= {*result.ids}


def assert_same(results: list[Result], wanted: list[Result]) -> None:
    """Assert that the results are bitwise equal."""
    for a, b in zip(results, wanted, strict=True):
        assert (a.frame_index, a.ids) == (b.frame_index, b.ids)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.probabilities, b.probabilities)


def everything_in(thing: object, seen: set[int] | None = None) -> list[torch.Tensor]:
    """Return every tensor reachable from an object's attributes."""
    seen = set() if seen is None else seen
    if isinstance(thing, torch.Tensor):
        return [thing]
    if id(thing) in seen:  # cyclic references
        return []
    seen.add(id(thing))
    items: Iterable[object] = ()
    if isinstance(thing, (list, tuple)):
        items = thing
    elif isinstance(thing, dict) or hasattr(thing, "__dict__"):
        items = (thing if isinstance(thing, dict) else vars(thing)).values()
    return [tensor for item in items for tensor in everything_in(item, seen)]


def assert_counted(state: State) -> None:
    """Assert that `nbytes` of a state includes all its tensors except counters; a pool has at most
    twice the pages in use, or its initial few."""
    total = sum(tensor.nbytes for tensor in everything_in(vars(state)))
    memory = getattr(state, "memory", None)
    if not isinstance(memory, MemoryBank):
        assert state.nbytes <= total <= state.nbytes + 2048
        return
    pool = memory.pages
    rest = state.nbytes - memory.nbytes
    assert rest <= total - pool.capacity * pool.page_bytes <= rest + 2048
    assert pool.used * pool.page_bytes == memory.held_bytes <= memory.nbytes
    assert pool.capacity <= max(2 * pool.used, FIRST_PAGES)
