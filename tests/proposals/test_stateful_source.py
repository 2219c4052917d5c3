"""Sources of proposals that remember frames: asked again, saved with the stream, and restored; and
models that cannot do without proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from quick_streams import stream_state

from vosengine import detectors
from vosengine.detectors.dnet import DNetSource
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import StateError
from vosengine.models.target_aware.network import TargetAware
from vosengine.proposals import Proposals, StatefulSource
from vosengine.training.synthetic import Clip
from vosengine.types import Result
from vosengine.zoo.registry import entry, list_models

# Its trackers learn as little as they can: what is looked at is the proposals.
QUICK = {"first_iterations": (1,), "later_iterations": (1,), "augmentations": 0, "max_tracks": 4}
CONFIG = tiny_config("target_aware", saliency_threshold=0.4, **QUICK)


@pytest.fixture
def frames(clip: Clip) -> torch.Tensor:
    return torch.from_numpy(clip.frames[:5, :64, :96])


def source(**options: Any) -> DNetSource:
    return DNetSource(config=CONFIG, device="cpu", **options)  # type: ignore[arg-type]


def segmenter(proposals: Any) -> Segmenter:
    return Segmenter("target_aware", config=CONFIG, device="cpu", proposals=proposals)


def same(a: Proposals, b: Proposals) -> bool:
    assert a.embeddings is not None and b.embeddings is not None
    return len(a) == len(b) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("boxes", "masks", "scores", "embeddings")
    )


def same_answer(a: Result | None, b: Result | None) -> bool:
    assert a is not None and b is not None
    return a.ids == b.ids and torch.equal(a.probabilities, b.probabilities)


@pytest.mark.slow
def test_asked_again_it_answers_as_the_first_time(frames: torch.Tensor) -> None:
    plain, repeated = source(), source()
    for index, frame in enumerate(frames):
        wanted = plain(frame, index)
        assert same(repeated(frame, index), wanted)
        assert same(repeated(frame, index), wanted)
    unguided = source()(frames[4], 4)
    assert not same(plain(frames[4], 4), unguided)
    assert same(plain(frames[4], 7), unguided)  # a gap


def test_embeddings_are_left_out_where_nobody_wants_them(frames: torch.Tensor) -> None:
    bare, whole = source(embed=False)(frames[0], 0), source()(frames[0], 0)
    assert bare.embeddings is None and whole.embeddings is not None
    assert torch.equal(bare.masks, whole.masks) and len(bare) > 1


@pytest.mark.slow
def test_what_it_remembers_goes_on_elsewhere(frames: torch.Tensor) -> None:
    first, second = source(), source()
    assert isinstance(first, StatefulSource)
    second.restore(first.tensors())
    for index in range(3):
        assert same(first(frames[index], index), second(frames[index], index))
    third = source()
    third.restore(second.tensors())
    assert same(third(frames[2], 2), first(frames[2], 2))  # the last one again
    third.restore(second.tensors())
    assert same(third(frames[3], 3), first(frames[3], 3))


@pytest.mark.slow
def test_it_takes_over_only_what_is_its_own(frames: torch.Tensor) -> None:
    first, same_weights = source(), source()
    first(frames[0], 0)
    config = tiny_config("target_aware", saliency_threshold=0.3, **QUICK)
    other = DNetSource(config=config, device="cpu")  # type: ignore[arg-type]
    for tensors in (other.tensors(), {}, {"index": torch.tensor(3)}):
        with pytest.raises(StateError, match="another source than this D-Net"):
            first.restore(tensors)
    same_weights.restore(first.tensors())
    assert same(first(frames[1], 1), same_weights(frames[1], 1))


@pytest.mark.parametrize("stopped_at", [0, 2])
@pytest.mark.slow
def test_a_stream_goes_on_bit_by_bit(stopped_at: int, frames: torch.Tensor, tmp_path: Path) -> None:
    whole = segmenter(source())
    for frame in frames[:stopped_at]:
        whole.step(frame)
    whole.save_state(tmp_path / "stream.safetensors")
    resumed = segmenter(source())
    resumed.load_state(tmp_path / "stream.safetensors")
    for frame in frames[stopped_at:]:
        assert same_answer(resumed.step(frame), whole.step(frame))
    for name, tensor in stream_state(whole).tensors().items():
        assert torch.equal(tensor, stream_state(resumed).tensors()[name]), name
    assert torch.equal(resumed.proposals.tensors()["after"], whole.proposals.tensors()["after"])  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_step_that_failed_is_tried_again_here_or_elsewhere(
    frames: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, failing = segmenter(source()), segmenter(source())
    for frame in frames[:2]:
        undisturbed.step(frame)
        failing.step(frame)

    def out_of_memory(*args: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TargetAware, "remember", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            failing.step(frames[2])
    failing.save_state(tmp_path / "stream.safetensors")
    elsewhere = segmenter(source())
    elsewhere.load_state(tmp_path / "stream.safetensors")
    for frame in frames[2:4]:
        wanted = undisturbed.step(frame)
        assert same_answer(failing.step(frame), wanted)
        assert same_answer(elsewhere.step(frame), wanted)
    assert same(source_of(failing)(frames[4], 4), source_of(undisturbed)(frames[4], 4))
    assert same(source_of(elsewhere)(frames[4], 4), source_of(undisturbed)(frames[4], 4))


def source_of(stream: Segmenter) -> DNetSource:
    assert isinstance(stream.proposals, DNetSource)
    return stream.proposals


@pytest.mark.slow
def test_a_stream_wants_the_kind_of_source_that_it_was_saved_with(
    frames: torch.Tensor, tmp_path: Path
) -> None:
    with_source, without = segmenter(source()), segmenter(None)
    for stream, name in ((with_source, "with"), (without, "without")):
        stream.step(frames[0])
        stream.save_state(tmp_path / name)
    with pytest.raises(StateError, match="saved with a source of proposals that remembers"):
        without.load_state(tmp_path / "with")
    with pytest.raises(StateError, match=r"saved without .* has one \(DNetSource\); leave it"):
        with_source.load_state(tmp_path / "without")
    assert with_source.frame_count == without.frame_count == 1
    stateless = segmenter(lambda frame, index: source()(frame, index))
    stateless.load_state(tmp_path / "without")


@pytest.mark.slow
def test_a_model_that_needs_proposals_asks_the_d_net(
    frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_tiny(**options: Any) -> DNetSource:
        opened.append(options)
        return source(embed=options["embed"])

    monkeypatch.setattr(detectors, "DNetSource", open_tiny)
    segmenter(None)
    assert opened == []
    monkeypatch.setattr(TargetAware, "needs_proposals", True)
    dnet = source()
    assert segmenter(dnet).proposals is dnet and opened == []
    alone = segmenter(None)
    assert opened == [{"weights": None, "device": "cpu", "embed": False}]
    with_source = segmenter(source())
    for frame in frames[:2]:
        assert same_answer(alone.step(frame), with_source.step(frame))


@pytest.mark.parametrize("name", list_models())
def test_who_needs_proposals_takes_them(name: str) -> None:
    method = entry(name).build
    assert method.takes_proposals or not method.needs_proposals
