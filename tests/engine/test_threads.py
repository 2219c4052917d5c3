"""Streams in several threads: torch's settings are global, and no result depends on them.
Streams of one engine: its memory pages are used by one call at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch
from many_streams import SIZES, frame_of, mask_of, open_engine, open_stream
from quick_streams import assert_same, begin, play
from test_ambient import default_dtype, matmul_precision, settings

from vosengine.ambient import own_settings
from vosengine.runtime import Precision
from vosengine.training.synthetic import Clip
from vosengine.types import Result

WAIT = 30.0  # timeout in seconds for a thread
PAUSE = 0.2  # seconds in which a thread that should be blocked would continue


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Run functions concurrently and return their results; pytest prints errors of threads."""
    results: dict[int, Any] = {}

    def run(index: int) -> None:
        results[index] = works[index]()

    threads = [Thread(target=run, args=(index,), daemon=True) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(results) == len(works), "a thread failed or is stuck"
    return [results[index] for index in range(len(works))]


def products() -> str:
    chosen = {
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    }
    assert len(chosen) == 1, chosen
    return str(chosen.pop())


@pytest.mark.parametrize("model", ["stm", "giel"])
@pytest.mark.slow
def test_streams_of_two_precisions_step_at_once_as_they_do_alone(model: str, small: Clip) -> None:
    """Under settings of the caller that would reduce the precision of float32 products."""
    prompts = {0: small.masks[0]}
    precisions = ("fp32", "bf16", "fp16")
    alone = [
        play(begin(model, precision=precision), small.frames, prompts) for precision in precisions
    ]
    together = Barrier(len(precisions))

    def stream(precision: str) -> Callable[[], list[Result]]:
        def work() -> list[Result]:
            segmenter = begin(model, precision=precision)
            together.wait(WAIT)
            for _ in range(4):
                segmenter.reset()
                answers = play(segmenter, small.frames, prompts)
            return answers

        return work

    with default_dtype(torch.float64), matmul_precision("medium"):
        before = settings()
        results = in_threads(*map(stream, precisions))
        assert settings() == before
    for one, other in zip(results, alone, strict=True):
        assert_same(one, other)


def test_the_first_one_out_leaves_the_settings_to_those_still_inside() -> None:
    second_in, first_out = Event(), Event()

    def first() -> None:
        with own_settings(), Precision("fp32").applied():
            assert second_in.wait(WAIT)
        first_out.set()

    def second() -> None:
        with own_settings(), Precision("bf16").applied():
            second_in.set()
            assert first_out.wait(WAIT)
            assert products() == "ieee" and torch.get_default_dtype() == torch.float32

    with default_dtype(torch.float64), matmul_precision("medium"):
        before = settings()
        in_threads(first, second)
        assert settings() == before


def test_tf32_takes_turns_with_the_others_and_nobody_starves() -> None:
    """The third thread arrives while tf32 waits: it queues behind it, not beside the first."""
    order: list[str] = []
    inside, waiting, may_leave = Event(), Event(), Event()

    def first() -> None:
        with Precision("fp32").applied():
            inside.set()
            assert may_leave.wait(WAIT)
            with Precision("fp16").applied():  # what is inside already does not queue
                assert products() == "ieee"
            order.append("first")

    def second() -> None:
        assert inside.wait(WAIT)
        waiting.set()
        with Precision("tf32").applied():
            assert products() == "tf32"
            order.append("tf32")

    def third() -> None:
        assert waiting.wait(WAIT)
        Event().wait(PAUSE)  # until tf32 stands in the line
        with Precision("fp32").applied():
            assert products() == "ieee"
            order.append("third")

    def fourth() -> None:
        assert waiting.wait(WAIT)
        Event().wait(2 * PAUSE)
        assert order == []
        may_leave.set()

    in_threads(first, second, third, fourth)
    assert order == ["first", "tf32", "third"]


def test_a_thread_that_would_wait_for_itself_is_told() -> None:
    with Precision("fp32").applied():
        with pytest.raises(RuntimeError, match="in one thread"), Precision("tf32").applied():
            pass
        assert products() == "ieee"
    with Precision("tf32").applied():
        assert products() == "tf32"


@pytest.mark.parametrize(
    "verb", ["step", "remove", "reset", "snapshot", "restore", "save_state", "load_state", "flush"]
)
@pytest.mark.slow
def test_calls_of_an_engines_streams_wait_for_each_other(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share memory pages: a pool that is moved while a step writes to it loses the write."""
    engine = open_engine("stm")
    stepping, other = open_stream(engine), open_stream(engine)
    frame, mask = frame_of(0, 0, SIZES[0]), mask_of(0, 0, SIZES[0])
    for stream in (stepping, other):
        stream.step(frame, mask)
    other.save_state(tmp_path / "saved")
    arguments = {
        "step": (frame,),
        "remove": (other.ids,),
        "restore": (other.snapshot(),),
        "save_state": (tmp_path / "again",),
        "load_state": (tmp_path / "saved",),
    }
    inside, go_on, done = Event(), Event(), Event()
    encode = engine.encode

    def slow(prepared: torch.Tensor) -> Any:
        monkeypatch.setattr(engine, "encode", encode)
        inside.set()
        assert go_on.wait(WAIT)
        return encode(prepared)

    monkeypatch.setattr(engine, "encode", slow)

    def call() -> None:
        assert inside.wait(WAIT)
        getattr(other, verb)(*arguments.get(verb, ()))
        done.set()

    def release() -> None:
        assert inside.wait(WAIT)
        assert not done.wait(PAUSE), f"{verb} did not wait for the step of another stream"
        go_on.set()

    try:
        in_threads(lambda: stepping.step(frame), call, release)
    finally:
        go_on.set()
    assert done.is_set()
