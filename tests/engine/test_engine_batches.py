"""Batched streams: which are batched, that results are per stream, and shared memory pools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from many_streams import SIZES, frame_of, mask_of, open_engine, open_stream
from quick_streams import begin
from recorded_graph import RecordedGraph

from vosengine import Engine, Segmenter
from vosengine.engine import engine as engine_module
from vosengine.errors import CapacityError, ConfigError
from vosengine.kernels import use_backend
from vosengine.types import Result
from vosengine.zoo.registry import entry, list_models

BATCHED = tuple(name for name in list_models() if entry(name).build.batched)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of all batches of several streams."""
    noted: list[int] = []
    together = engine_module.answer_together

    def spy(engine: Engine, turns: Any) -> list[Result[torch.Tensor]]:
        noted.append(len(turns))
        return together(engine, turns)

    monkeypatch.setattr(engine_module, "answer_together", spy)
    return noted


def advance(engine: Engine, streams: list[Segmenter], index: int, prompted: bool) -> list[Result]:
    """Step one frame of every stream, each of its own video; returns results in stream order."""
    takes = engine.method.takes_mask
    for number, stream in enumerate(streams):
        mask = mask_of(2 * number, index, SIZES[0]) if prompted and takes else None
        engine.submit(stream, frame_of(2 * number, index, SIZES[0]), mask)
    results: dict[Segmenter, Result] = {}
    while answered := engine.step():
        results |= {stream: result for stream, result in answered if result is not None}
    return [results[stream] for stream in streams if stream in results]


def in_float64(engine: Engine, streams: list[Segmenter]) -> None:
    engine.method.double()  # so that rounding decides nothing
    for stream in streams:
        stream.dtype = torch.float64


def test_the_models_that_batch() -> None:
    assert BATCHED == ("stm", "munet", "imcnet")


@pytest.mark.parametrize("model", list_models())
def test_only_frames_in_which_nothing_begins_go_together(model: str, sizes: list[int]) -> None:
    engine = open_engine(model, max_batch=4)
    streams = [open_stream(engine) for _ in range(3)]
    for index in range(8):
        advance(engine, streams, index, prompted=index in (0, 3))
    assert set(sizes) == ({3} if model in BATCHED else set())


def test_memories_of_features_are_not_read_together(sizes: list[int]) -> None:
    engine = open_engine("stm", max_batch=4)
    streams = [open_stream(engine, memory="afb") for _ in range(2)]
    for index in range(3):
        advance(engine, streams, index, prompted=index == 0)
    assert sizes == []


@pytest.mark.parametrize("model", BATCHED)
@pytest.mark.slow
def test_graphs_of_several_streams_give_what_there_is_without(
    model: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While objects are added and removed, and the page pool grows."""
    plain = open_engine(model, max_batch=4)
    with monkeypatch.context() as patch, use_backend("reference"):
        patch.setattr(engine_module, "graph_maker", lambda device: RecordedGraph)
        captured = open_engine(model, max_batch=4)
        captured_streams, plain_streams = (
            [open_stream(e) for _ in range(4)] for e in (captured, plain)
        )
        in_float64(captured, captured_streams)
        in_float64(plain, plain_streams)
        for index in range(14):
            if index == 8 and captured.method.takes_mask:
                for streams in (captured_streams, plain_streams):
                    streams[1].remove(streams[1].ids[0])
            last = 4 if index < 10 else 2  # two streams pause
            one = advance(captured, captured_streams[:last], index, prompted=index in (0, 5))
            other = advance(plain, plain_streams[:last], index, prompted=index in (0, 5))
            for a, b in zip(one, other, strict=True):
                assert (a.ids, a.frame_index) == (b.ids, b.frame_index)
                assert torch.equal(a.labels, b.labels)
                torch.testing.assert_close(a.probabilities, b.probabilities, rtol=0, atol=1e-6)
    assert captured.together is not None
    assert captured.together.captured >= 2
    assert {2, 4} <= set(sizes)


def test_past_its_budget_an_engine_refuses_a_stream_and_then_has_room_again() -> None:
    config = open_engine("stm").method.config
    measured = Engine("stm", config=config, device="cpu", precision="fp32")
    stream = measured.open()
    stream.step(frame_of(0, 0, SIZES[0]), mask_of(0, 0, SIZES[0]))
    page = measured.pools.used_bytes
    engine = Engine("stm", config=config, device="cpu", precision="fp32", memory_budget=5 * page)
    streams = [engine.open() for _ in range(6)]
    answers = [
        s.step(frame_of(2 * n, 0, SIZES[0]), mask_of(2 * n, 0, SIZES[0]))
        for n, s in enumerate(streams[:5])
    ]
    assert engine.pools.used == 5
    with pytest.raises(CapacityError, match="close a stream or remove objects"):
        streams[5].step(frame_of(10, 0, SIZES[0]), mask_of(10, 0, SIZES[0]))
    assert (streams[5].ids, streams[5].frame_count, engine.pools.used) == ((), 0, 5)
    with pytest.raises(CapacityError):  # an object more for a stream that there is
        streams[0].step(frame_of(0, 1, SIZES[0]), np.full(SIZES[0], 9, np.uint8))
    assert streams[0].ids == answers[0].ids and streams[0].frame_count == 1
    engine.close(streams[3])
    assert engine.pools.used == 4
    again = streams[5].step(frame_of(10, 0, SIZES[0]), mask_of(10, 0, SIZES[0]))
    alone = begin("stm").step(frame_of(10, 0, SIZES[0]), mask_of(10, 0, SIZES[0]))
    assert torch.equal(again.labels, alone.labels)
    with pytest.raises(ConfigError, match="memory_budget: wanted 1 byte or more, given 0"):
        Engine("stm", config=config, memory_budget=0)


def test_streams_of_two_sizes_have_two_pools() -> None:
    engine = open_engine("stm", max_batch=4)
    streams = [open_stream(engine) for _ in SIZES]
    for stream, size in zip(streams, ((48, 64), (64, 80)), strict=True):
        stream.step(frame_of(0, 0, size), mask_of(0, 0, size))
    assert len(engine.pools._pools) == 2
    assert engine.pools.used == 2
    for stream in streams:
        stream.reset()
    assert engine.pools.used == 0


@pytest.mark.parametrize("model", BATCHED)
@pytest.mark.slow
def test_batches_in_float32_have_the_masks_of_streams_by_themselves(
    model: str, sizes: list[int]
) -> None:
    """The order of summation differs: IoU of all labels is above .999."""
    together, alone = (open_engine(model, max_batch=size) for size in (4, 1))
    batched_streams, single_streams = (
        [open_stream(e) for _ in range(3)] for e in (together, alone)
    )
    shared = joined = 0
    for index in range(10):
        one = advance(together, batched_streams, index, prompted=index == 0)
        other = advance(alone, single_streams, index, prompted=index == 0)
        for a, b in zip(one, other, strict=True):
            assert (a.ids, a.frame_index) == (b.ids, b.frame_index)
            shared += int(((a.labels == b.labels) & (a.labels > 0)).sum())
            joined += int(((a.labels > 0) | (b.labels > 0)).sum())
    assert 3 in sizes
    assert joined > 0
    assert shared / joined > 0.999
