"""Many streams on one engine: each has the labels of a separate Segmenter."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many_streams import SIZES, frame_of, mask_of, open_engine, open_stream
from quick_streams import begin, play

from vosengine import Engine, Segmenter
from vosengine.engine import engine as engine_module
from vosengine.errors import ConfigError, InputError, StateError
from vosengine.kernels.spans import listen
from vosengine.types import Result
from vosengine.zoo.registry import list_models


class Twin:
    """Stream of an engine, and a separate Segmenter with the same inputs."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.engine, self.number = engine, number
        self.size = SIZES[number % 2]
        self.stream, self.alone = open_stream(engine), begin(engine.model)
        self.index = 0
        self.expected: list[Result | None] = []

    def submit(self, prompted: bool) -> None:
        method = self.alone.method
        prompted = method.takes_mask and (prompted or (method.needs_mask and self.index == 0))
        frame = frame_of(self.number, self.index, self.size)
        mask = mask_of(self.number, self.index, self.size) if prompted else None
        self.engine.submit(self.stream, frame, mask)
        self.expected.append(self.alone.step(frame, mask))
        self.index += 1

    def remove(self) -> None:
        if self.alone.ids and self.alone.max_objects > 1:
            self.alone.remove(self.alone.ids[0])
            self.stream.remove(self.stream.ids[0])

    def compare(self, result: Result | None) -> None:
        wanted = self.expected.pop(0)
        assert (result is None) == (wanted is None)
        if result is not None and wanted is not None:
            assert result.frame_index == wanted.frame_index
            assert result.ids == wanted.ids
            assert torch.equal(result.labels, wanted.labels)
            assert torch.equal(result.probabilities, wanted.probabilities)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("open")),
        st.tuples(st.just("submit"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("submit"), st.integers(0, 3), st.just(False)),
        st.tuples(st.just("step")),
        st.tuples(st.just("remove"), st.integers(0, 3)),
        st.tuples(st.just("close"), st.integers(0, 3)),
    ),
    min_size=4,
    max_size=24,
)


@pytest.mark.parametrize("model", list_models())
@settings(
    max_examples=8, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(events=EVENTS)
@pytest.mark.slow
def test_streams_in_any_order_are_streams_by_themselves(
    model: str, events: list[tuple[Any, ...]]
) -> None:
    engine = open_engine(model)
    twins: list[Twin] = [Twin(engine, 0)]
    opened = 1

    def settle() -> None:
        """Check all pending results."""
        while results := engine.step():
            for stream, result in results:
                (twin,) = (candidate for candidate in twins if candidate.stream is stream)
                twin.compare(result)

    for kind, *rest in events:
        twin = twins[rest[0] % len(twins)] if rest and twins else None
        if kind == "open" and len(twins) < 4:
            twins.append(Twin(engine, opened))
            opened += 1
        elif kind == "submit" and twin is not None and not twin.expected:
            twin.submit(rest[1])
        elif kind == "step":
            for stream, result in engine.step():
                (answered,) = (candidate for candidate in twins if candidate.stream is stream)
                answered.compare(result)
        elif kind == "remove" and twin is not None and not twin.expected:
            twin.remove()
        elif kind == "close" and twin is not None:
            engine.close(twin.stream)
            twins.remove(twin)
    settle()
    assert engine.waiting == 0
    assert not any(twin.expected for twin in twins)


@pytest.mark.parametrize("model", list_models())
@pytest.mark.slow
def test_frames_that_are_encoded_together_have_the_labels_they_have_alone(model: str) -> None:
    engine = open_engine(model, max_batch=4)
    twins = [Twin(engine, 2 * number) for number in range(3)]
    engine.method.double()  # so that rounding decides nothing
    for twin in twins:
        twin.stream.dtype = twin.alone.dtype = torch.float64
        twin.alone.method.double()
    together = 0
    for _ in range(6):
        for twin in twins:
            twin.submit(prompted=False)
        while results := engine.step():
            together += len(results) > 1
            for stream, result in results:
                (twin,) = (candidate for candidate in twins if candidate.stream is stream)
                wanted = twin.expected.pop(0)
                assert (result is None) == (wanted is None)
                if result is not None and wanted is not None:
                    assert torch.equal(result.labels, wanted.labels)
    assert together >= 5


def test_the_frames_of_two_streams_are_encoded_once() -> None:
    """giel steps its streams one by one, but encodes their frames in one batch."""
    engine, size = open_engine("giel", max_batch=2), SIZES[0]
    streams = [open_stream(engine) for _ in range(2)]
    for number, stream in enumerate(streams):  # prompted frames run alone
        stream.step(frame_of(number, 0, size), mask_of(number, 0, size))
    spans: list[str] = []

    @contextmanager
    def record(name: str) -> Iterator[None]:
        spans.append(name)
        yield

    for number, stream in enumerate(streams):
        engine.submit(stream, frame_of(number, 1, size))
    with listen(record):
        assert len(engine.step()) == 2
    assert spans.count("encode") == 1


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.slow
def test_what_is_refused_leaves_the_other_streams_alone(max_batch: int, tmp_path: Path) -> None:
    saved = tmp_path / "stream"
    engine, other = open_engine("stm", max_batch), open_engine("stm")
    twins = [Twin(engine, 0), Twin(engine, 2)]
    victim, stranger = open_stream(engine), open_stream(other)
    frame, size = frame_of(9, 0, SIZES[0]), SIZES[0]
    engine.submit(victim, frame, mask_of(9, 0, size))
    engine.step()
    for step in range(4):
        for twin in twins:
            twin.submit(prompted=False)
        waiting = engine.waiting
        bad: list[tuple[type[Exception], str, Any]] = [
            (InputError, "mask", lambda: engine.submit(victim, frame, np.ones((5, 5), np.uint8))),
            (InputError, "frame", lambda: engine.submit(victim, np.zeros((9, 9), np.uint8))),
            (InputError, "NaN", lambda: engine.submit(victim, np.full((*size, 3), np.nan, "f"))),
            (InputError, "resize", lambda: engine.submit(victim, frame[:40])),
            (StateError, "waits", lambda: engine.submit(twins[0].stream, frame)),
            (StateError, "waits", lambda: twins[0].stream.step(frame)),
            (StateError, "waits", lambda: twins[0].stream.remove(1)),
            (StateError, "waits", lambda: twins[0].stream.reset()),
            (StateError, "waits", lambda: twins[0].stream.snapshot()),
            (StateError, "waits", lambda: twins[0].stream.restore(b"")),
            (StateError, "waits", lambda: twins[0].stream.save_state(saved)),
            (StateError, "waits", lambda: twins[0].stream.load_state(saved)),
            (StateError, "waits", lambda: twins[0].stream.flush()),
            (StateError, "another engine", lambda: engine.submit(stranger, frame)),
            (StateError, "another engine", lambda: engine.close(stranger)),
        ]
        for kind, word, call in bad:
            closed = step == 3 and kind is InputError  # those of the victim
            with pytest.raises(StateError if closed else kind, match="closed" if closed else word):
                call()
        assert engine.waiting == waiting and not saved.exists()
        if step == 2:  # in the middle of what waits
            engine.submit(victim, frame)
            engine.close(victim)
        if step == 3:
            with pytest.raises(StateError, match="closed"):
                victim.step(frame)
            engine.close(victim)
        while results := engine.step():
            for stream, result in results:
                (twin,) = (candidate for candidate in twins if candidate.stream is stream)
                if max_batch == 1:
                    twin.compare(result)
                else:
                    assert result is not None
                    twin.expected.pop(0)


def test_streams_share_one_set_of_weights() -> None:
    engine = open_engine("munet")
    streams = [open_stream(engine) for _ in range(4)]
    assert all(stream.method is engine.method for stream in streams)
    alone = Segmenter("munet", config=tiny_config("munet"), device="cpu", precision="fp32")
    assert alone.runs_on is not engine
    assert alone.runs_on.open().method is alone.method


def test_an_engine_says_what_of_a_segmenter_it_decides() -> None:
    engine = open_engine("stm")
    for options, message in (
        ({"weights": "demo"}, "weights: is the engine's"),
        ({"precision": "bf16"}, "precision: is the engine's"),
        ({"device": "cpu"}, "device: is the engine's"),
        ({"config": tiny_config("stm")}, "config: is the engine's"),
    ):
        with pytest.raises(ConfigError, match=message):
            Segmenter("stm", engine=engine, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="engine: is of stm, wanted one of munet"):
        Segmenter("munet", engine=engine)
    with pytest.raises(ConfigError, match="max_batch: wanted 1 or more, given 0"):
        Engine("stm", config=tiny_config("stm"), max_batch=0)
    with pytest.raises(ConfigError, match="engine: wanted fast or eager"):
        Engine("stm", config=tiny_config("stm"), mode="slow")


def test_a_stream_may_be_stepped_by_itself_and_saved_for_another_of_the_engine(
    tmp_path: Path,
) -> None:
    engine = open_engine("stm")
    first, second, alone = open_stream(engine), open_stream(engine), begin("stm")
    frames = [frame_of(0, index, SIZES[0]) for index in range(6)]
    mask = mask_of(0, 0, SIZES[0])
    wanted = [alone.step(frame, None if i else mask) for i, frame in enumerate(frames)]
    results = [first.step(frame, None if i else mask) for i, frame in enumerate(frames[:3])]
    first.save_state(tmp_path / "stream")
    second.load_state(tmp_path / "stream")
    engine.close(first)
    results += [second.step(frame) for frame in frames[3:]]
    for result, expected in zip(results, wanted, strict=True):
        assert result is not None and expected is not None
        assert torch.equal(result.labels, expected.labels)


@pytest.mark.parametrize("model", ["stm", "imcnet"])
@pytest.mark.slow
def test_threads_that_step_streams_of_one_engine_take_turns(model: str) -> None:
    engine = open_engine(model)
    videos = [
        np.stack([frame_of(number, index, SIZES[0]) for index in range(5)]) for number in range(4)
    ]
    masks = [{0: mask_of(number, 0, SIZES[0])} for number in range(4)]
    wanted = [play(begin(model), *pair) for pair in zip(videos, masks, strict=True)]
    streams = [open_stream(engine) for _ in videos]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(play, streams, videos, masks))
    for results, expected in zip(outputs, wanted, strict=True):
        assert [
            torch.equal(a.labels, b.labels) for a, b in zip(results, expected, strict=True)
        ] == [True] * 5


@pytest.mark.parametrize("broken", ["encode", "together", "run_job"])
@pytest.mark.slow
def test_an_error_in_a_step_costs_no_other_stream_its_frame(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when out of memory: the second of the frames in a batch fails."""
    engine = open_engine("stm", max_batch=4)
    twins = [Twin(engine, 2 * number) for number in range(3)]
    for twin in twins:
        twin.submit(prompted=False)
    while results := engine.step():  # the first masks, one by one
        for stream, result in results:
            next(candidate for candidate in twins if candidate.stream is stream).compare(result)
    for twin in twins:
        twin.submit(prompted=False)

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        if broken == "encode":
            patch.setattr(engine, "encode", fails)
        else:
            patch.setattr(engine_module, "answer_together", fails)
        if broken == "run_job":
            patch.setattr(twins[1].stream, "run_job", fails)
            with pytest.raises(torch.OutOfMemoryError):
                engine.step()
        with pytest.raises(torch.OutOfMemoryError):
            engine.step()
    assert engine.waiting == (1 if broken == "run_job" else 3)
    answered = []
    while results := engine.step():
        answered += [next(i for i, t in enumerate(twins) if t.stream is s) for s, _ in results]
    assert answered == ([0, 2] if broken == "run_job" else [0, 1, 2])
    twins[1].stream.step(frame_of(2, 2, SIZES[0]))  # and that stream goes on too
