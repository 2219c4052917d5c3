"""Named spans: listeners receive the spans of their thread or task, and only those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import torch
from quick_streams import begin, graphs_of, play
from recorded_graph import RecordedGraph

from vosengine.engine import engine as engine_module
from vosengine.errors import InputError
from vosengine.kernels import ShapeError, read_memory, use_backend
from vosengine.kernels.spans import listen, listened, span, spanned
from vosengine.training.synthetic import Clip

NAMES = {
    "stm": {"read_memory", "finish_masks"},
    "munet": {"read_memory", "correlate_frames"},
    "giel": {"read_memory"},
    "dmn_aoa": {"templates", "match", "proposals", "pool_regions", "align_object"},
    "imcnet": {"align", "decode", "deform_conv"},
    "target_aware": {"group_centres", "fit_target"},
}


class Listener:
    """Records paths of span names, and the open ones."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.heard: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.open.append(name)
        self.heard.append("/".join(self.open))
        try:
            yield
        finally:
            assert self.open.pop() == name


def test_every_model_says_what_it_does(any_model: str, small: Clip) -> None:
    silent, observed = begin(any_model), begin(any_model)
    wanted = play(silent, small.frames, {0: small.masks[0]})
    listener = Listener()
    with listen(listener):
        results = play(observed, small.frames, {0: small.masks[0]})
    for one, other in zip(results, wanted, strict=True):
        assert torch.equal(one.labels, other.labels)
    names = {path.split("/")[-1] for path in listener.heard}
    assert names >= {"step", "encode", "segment", "remember", "prepare_frame", *NAMES[any_model]}
    assert listener.heard.count("step") == len(small.frames)
    assert {"step/encode", "step/segment", "step/remember"} <= set(listener.heard)
    count = len(listener.heard)
    observed.reset()
    play(observed, small.frames[:1], {0: small.masks[0]})
    assert len(listener.heard) == count and listener.open == []


def test_nobody_else_is_heard() -> None:
    """Spans of other threads or after the block are not received; listeners nest."""
    outer, inner = Listener(), Listener()

    @spanned("work")
    def work(number: int, *, twice: bool = False) -> int:
        """Adds."""
        return number + twice

    with listen(outer):
        assert listened()
        thread = Thread(target=work, args=(1,))
        thread.start()
        thread.join()
        with listen(inner), span("block"):
            assert work(1, twice=True) == 2
        work(1)
    work(1)
    assert not listened()
    assert (outer.heard, inner.heard) == (["work"], ["block", "block/work"])
    assert work.__doc__ == "Adds."


def test_a_span_ends_with_an_error(small: Clip) -> None:
    listener, segmenter = Listener(), begin("stm")
    with listen(listener):
        with pytest.raises(InputError):
            segmenter.step(small.frames[0])
        with pytest.raises(ShapeError):
            read_memory(torch.zeros(1), torch.zeros(1), torch.zeros(1), scale=1.0)
    assert listener.heard == ["step", "read_memory"] and listener.open == []


def test_under_a_listener_graphs_are_not_replayed(
    small: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "graph_maker", lambda device: RecordedGraph)
    segmenter = begin("stm")
    assert len(graphs_of(segmenter)) == 2
    with use_backend("reference"), listen(Listener()):
        play(segmenter, small.frames, {0: small.masks[0]})
        assert all(cache.captured == len(cache) == 0 for cache in graphs_of(segmenter))
    with use_backend("reference"):
        play(segmenter, small.frames)
    assert [cache.captured for cache in graphs_of(segmenter)] == [1, 1]


def test_torchs_profiler_shows_spans(small: Clip) -> None:
    from torch.profiler import profile, record_function

    with profile() as seen, listen(record_function):
        begin("stm").step(small.frames[0], small.masks[0])
    assert {"step", "encode", "remember"} <= {event.key for event in seen.key_averages()}
