"""Captured graphs: same results as without, and recapture when the number of objects changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from quick_streams import SIZE, begin, captured_by, graphs_of, play, rectangle
from recorded_graph import RecordedGraph

from vosengine.engine import engine as engine_module
from vosengine.engine.segmenter import Segmenter
from vosengine.kernels import use_backend
from vosengine.runtime.graphs import LIMIT, GraphCache, copied
from vosengine.training.synthetic import Clip
from vosengine.zoo.registry import list_models


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine_module, "graph_maker", lambda device: RecordedGraph)
    with use_backend("reference"):
        yield


def pair(model: str, **options: Any) -> tuple[Segmenter, Segmenter]:
    """Return two Segmenters that differ only in the use of graphs."""
    one, other = begin(model, **options), begin(model, **options)
    assert len(graphs_of(one)) == 2
    other._graphs = other.runs_on._encoding = None
    return one, other


def names_of(segmenter: Segmenter) -> list[Any]:
    """Of all captured graphs, those of the engine first."""
    return [name for cache in graphs_of(segmenter) for name, *_ in cache._graphs]


def same(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.ids == b.ids and a.frame_index == b.frame_index
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.probabilities, b.probabilities)


@pytest.mark.parametrize("model", list_models())
@pytest.mark.slow
def test_a_stream_by_graphs_is_bit_by_bit_the_stream_without(
    model: str, small: Clip, graphs: None
) -> None:
    """Results are compared after all frames: no graph may overwrite them."""
    frames = np.concatenate([small.frames, small.frames[::-1]])
    prompts = {0: small.masks[0], 5: small.masks[5]}
    one, other = pair(model)
    same(play(one, frames, prompts), play(other, frames, prompts))
    wanted = {"encode", "answer"} & set(one.method.capturable)
    assert captured_by(one) >= len(wanted) > 0
    names = {name if isinstance(name, str) else name[0] for name in names_of(one)}
    assert names == wanted


@pytest.mark.parametrize("model", ["stm", "munet", "giel", "dmn_aoa"])
def test_another_number_of_objects_is_another_graph(model: str, small: Clip, graphs: None) -> None:
    one, other = pair(model)
    answers: list[list[Any]] = [[], []]
    new = rectangle(30, 40, 9, 16, 7)
    for segmenter, results in zip((one, other), answers, strict=True):
        results += play(segmenter, small.frames[:4], {0: small.masks[0]})
        results += play(segmenter, small.frames[4:8], {0: new})
        segmenter.remove(1)
        results += play(segmenter, small.frames[4:8])
    same(*answers)
    assert {answer.ids for answer in answers[0]} == {(1, 2), (1, 2, 7), (2, 7)}
    signatures = [name[1] for name in names_of(one) if isinstance(name, tuple)]
    assert {key if isinstance(key, int) else key[0] for key in signatures} == {2, 3}


@pytest.mark.parametrize("model", ["stm", "munet"])
@pytest.mark.slow
def test_other_ids_need_no_other_graph(model: str, small: Clip, graphs: None) -> None:
    """Nor is another order of slots. Results with earlier ids are unchanged."""
    one, other = pair(model)
    prompts = [small.masks[0], np.where(small.masks[0] == 1, 9, 0), np.zeros_like(small.masks[0])]
    prompts[2][20:32, 20:40] = 4
    answers: list[list[Any]] = [[], []]
    captured = []
    for segmenter, results in zip((one, other), answers, strict=True):
        for prompt in prompts:
            results += play(segmenter, small.frames[:6], {0: prompt})
            captured += [captured_by(segmenter)] if segmenter is one else []
            segmenter.remove(segmenter.ids[0])
    same(*answers)
    assert [a.ids for a in answers[0][::6]] == [(1, 2), (2, 9), (4, 9)]
    assert captured[0] > 0 and captured == captured[:1] * 3


@pytest.mark.slow
def test_a_new_stream_of_another_size_is_captured_anew(small: Clip, graphs: None) -> None:
    one, other = pair("munet")
    for height, width in (SIZE, (40, 56)):
        frames, mask = small.frames[:5, :height, :width], small.masks[0][:height, :width]
        same(play(one, frames, {0: mask}), play(other, frames, {0: mask}))
        assert graphs_of(one)[-1].captured > 0
        one.reset()
        other.reset()
        other._graphs = None
        assert graphs_of(one)[-1].captured == 0


@pytest.mark.slow
def test_memory_that_grows_and_wraps_needs_no_other_graph(small: Clip, graphs: None) -> None:
    from vosengine.config import MemoryConfig

    one, other = pair("stm", memory=MemoryConfig(policy="every-2", max_frames=3))
    frames = np.concatenate([small.frames] * 2)
    same(
        play(one, frames, {0: small.masks[0]}),
        play(other, frames, {0: small.masks[0]}),
    )
    assert captured_by(one) == 2  # one of each kind


def test_asking_for_numbers_or_bringing_them_cannot_be_captured() -> None:
    for work in (
        lambda x: x + float(x.sum()),
        lambda x: x[x.nonzero().flatten()],
        lambda x: x + torch.tensor([1.0]),
    ):
        graphs = GraphCache(RecordedGraph)
        graphs.run("work", work, torch.ones(1))
        with pytest.raises(AssertionError, match=r"waits for the device|from the host"):
            graphs.run("work", work, torch.ones(1))


def test_a_piece_is_done_then_captured_then_replayed() -> None:
    calls = []

    def work(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return 2 * x

    graphs = GraphCache(RecordedGraph)
    for number in range(5):
        assert (
            graphs.run("double", work, torch.full((3,), float(number))).tolist() == [2 * number] * 3
        )
    assert len(calls) == 2 and graphs.captured == 1
    graphs.run("double", work, torch.ones(4))  # another shape
    graphs.run(("double", 2), work, torch.ones(3))  # another name
    assert len(calls) == 4 and graphs.captured == 1 and len(graphs) == 3


def test_a_capture_that_failed_is_tried_again() -> None:
    fails = iter([False, True, False, False])

    def work(x: torch.Tensor) -> torch.Tensor:
        if next(fails):
            raise RuntimeError("no room")
        return x + 1

    graphs = GraphCache(RecordedGraph)
    graphs.run("work", work, torch.zeros(1))
    with pytest.raises(RuntimeError, match="no room"):
        graphs.run("work", work, torch.ones(1))
    assert graphs.run("work", work, torch.full((1,), 2.0)).tolist() == [3]
    assert graphs.run("work", work, torch.full((1,), 3.0)).tolist() == [4]


def test_what_others_read_is_not_written_over() -> None:
    tensor = torch.ones(2)
    graphs = GraphCache(RecordedGraph)
    graphs.run("work", torch.neg, tensor, shared=True)
    graphs.run("work", torch.neg, torch.zeros(2), shared=True)
    assert tensor.tolist() == [1, 1]
    graphs.run("other", torch.neg, tensor)
    graphs.run("other", torch.neg, torch.zeros(2))
    assert tensor.tolist() == [0, 0]


def test_the_piece_that_waited_longest_goes() -> None:
    graphs = GraphCache(RecordedGraph)
    for number in range(LIMIT + 3):
        graphs.run(0, torch.neg, torch.ones(1))
        graphs.run(number, torch.neg, torch.ones(2))
    assert len(graphs) == LIMIT and graphs.captured == 1


def test_copies_keep_their_layout() -> None:
    x = torch.rand(1, 4, 3, 2).to(memory_format=torch.channels_last)
    nested = copied((x, [x]))
    assert torch.equal(nested[0], x) and nested[0].stride() == x.stride()
    assert nested[0].data_ptr() != x.data_ptr() != nested[1][0].data_ptr()
