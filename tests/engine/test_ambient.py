"""torch settings of the caller, and forked processes, do not affect results."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make, tiny_source
from exported import Export
from quick_streams import assert_same, begin, play, quarters

from vosengine import OnnxSegmenter
from vosengine.errors import StateError
from vosengine.proposals import Proposals
from vosengine.training.synthetic import Clip
from vosengine.types import Result
from vosengine.zoo.registry import list_models

LENGTH = 4


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def matmul_precision(name: str) -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast fp16": lambda: torch.autocast("cpu", torch.float16),
    "default float64": lambda: default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
    "matmul medium": lambda: matmul_precision("medium"),
}


def settings() -> tuple[object, ...]:
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_float32_matmul_precision(),
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    )


@cache
def calm_answers(model: str, frames: bytes, mask: bytes) -> list[Result]:
    video = np.frombuffer(frames, np.uint8).reshape(LENGTH, 48, 64, 3)
    prompt = np.frombuffer(mask, np.uint8).reshape(48, 64)
    return play(begin(model), video, {0: prompt})


def answers_in(
    model: str, small: Clip, within: Callable[[], AbstractContextManager[Any]], out: Path
) -> list[Result]:
    """Run a Segmenter made in those settings: first steps inside, the next outside, the last inside
    again; outside also with another one that resumes the state saved inside. Asserts that the
    settings are unchanged."""
    with within():
        before = settings()
        segmenter = begin(model)
        assert settings() == before
        mask = small.masks[0] if segmenter.method.takes_mask else None
        results = [segmenter.step(small.frames[0], mask), segmenter.step(small.frames[1])]
        segmenter.save_state(out)
        assert settings() == before
    results.append(segmenter.step(small.frames[2]))
    other = begin(model)
    other.load_state(out)
    again = other.step(small.frames[2])
    if again is not None and results[2] is not None:
        assert_same([again], [results[2]])
    with within():
        results.append(segmenter.step(small.frames[3]))
        results += segmenter.flush()
        assert settings() == before
        assert all(result.probabilities.dtype == torch.float32 for result in results if result)
    return [result for result in results if result is not None]


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.slow
def test_what_the_caller_has_set_changes_no_label(
    any_model: str, ambient: str, small: Clip, tmp_path: Path
) -> None:
    wanted = calm_answers(any_model, small.frames[:LENGTH].tobytes(), small.masks[0].tobytes())
    results = answers_in(any_model, small, AMBIENT[ambient], tmp_path / "stream")
    assert_same(results, wanted)


def test_a_source_is_asked_under_the_callers_settings(small: Clip) -> None:
    """The source belongs to the caller: autocast around a step applies to it."""
    seen: list[bool] = []

    def source(frame: torch.Tensor, index: int) -> Proposals:
        seen.append(torch.is_autocast_enabled("cpu"))
        return quarters(frame, index)

    segmenter = begin("dmn_aoa", proposals=source)
    with torch.autocast("cpu", torch.bfloat16):
        segmenter.step(small.frames[0], small.masks[0])
    segmenter.step(small.frames[1])
    assert seen == [True, False]


@pytest.mark.slow
def test_a_d_net_by_itself_minds_nothing_either(small: Clip) -> None:
    calm = tiny_source()
    wanted = [calm(frame, index) for index, frame in enumerate(small.frames[:2])]
    for within in AMBIENT.values():
        with within():
            source = tiny_source()
            first = source(small.frames[0], 0)
        proposals = [first, source(small.frames[1], 1)]
        for one, other in zip(proposals, wanted, strict=True):
            assert torch.equal(one.masks, other.masks)
            assert torch.equal(one.scores, other.scores)


def test_a_mask_that_the_caller_writes_to_later_was_taken_as_it_was(small: Clip) -> None:
    mask = torch.from_numpy(small.masks[0].copy())
    result = make("stm").step(small.frames[0], mask)
    assert result is not None
    wanted = result.probabilities.clone()
    mask.zero_()
    assert torch.equal(result.probabilities, wanted)


# Processes and copies


@pytest.mark.parametrize(
    "take", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"]
)
def test_a_stream_is_neither_copied_nor_pickled(take: Callable[[Any], Any]) -> None:
    with pytest.raises(StateError, match=r"^Segmenter: a stream is .*; use save_state"):
        take(make("stm"))


@pytest.mark.parametrize("model", list_models())
def test_after_a_fork_the_child_is_told_to_spawn(model: str, small: Clip) -> None:
    segmenter = begin(model)
    segmenter.step(small.frames[0], small.masks[0] if segmenter.method.takes_mask else None)
    assert spoken_by_a_child(lambda: segmenter.step(small.frames[1])).count("spawn") == 1
    assert "spawn" in spoken_by_a_child(segmenter.flush)
    assert "spawn" in spoken_by_a_child(segmenter.runs_on.step)
    assert segmenter.step(small.frames[1]) is not None or segmenter.latency  # the parent goes on


def test_an_export_says_the_same(export: Export, small: Clip) -> None:
    engine = OnnxSegmenter(export("munet"), providers=["CPUExecutionProvider"], threads=1)
    engine.step(small.frames[0], small.masks[0])
    assert "spawn" in spoken_by_a_child(lambda: engine.step(small.frames[1]))
    with pytest.raises(StateError, match="make one anew from the folder of its export"):
        copy.deepcopy(engine)


def spoken_by_a_child(work: Callable[[], object]) -> str:
    """Return the message of the StateError that the work raises in a forked child, or ""."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # ends here, whatever happens
        try:
            work()
        except StateError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()
