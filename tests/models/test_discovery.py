"""Discovery of target-aware U-VOS, its guidance, and alternative readings of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make, tiny_config, to_the_end
from quick_streams import stream_state

from vosengine.detectors.dnet import DNetSource
from vosengine.engine.segmenter import Segmenter
from vosengine.proposals import boxes_of
from vosengine.training.synthetic import Clip


@pytest.mark.slow
def test_dnet_as_a_source_gives_what_the_method_finds_itself(clip: Clip) -> None:
    config = tiny_config("target_aware", saliency_threshold=0.4)
    frames = clip.frames[:4, :64, :96]
    inside = Segmenter("target_aware", config=config, device="cpu")
    outside = Segmenter(
        "target_aware",
        config=config,
        device="cpu",
        proposals=DNetSource(config=config, device="cpu"),
    )
    for frame in frames:
        a, b = inside.step(frame), outside.step(frame)
        assert a is not None
        assert b is not None
        assert a.ids == b.ids
        assert torch.equal(a.labels, b.labels)
    assert len(inside.ids) > 1


def test_dnet_alone_proposes_in_the_frames_own_pixels(clip: Clip) -> None:
    config = tiny_config("target_aware", size=48, saliency_threshold=0.3)
    source = DNetSource(config=config, device="cpu")
    first = source(clip.frames[0], 0)
    assert len(first) > 0
    assert first.masks.shape[1:] == (65, 99)
    assert torch.equal(first.boxes, boxes_of(first.masks))
    assert first.embeddings is not None
    torch.testing.assert_close(first.embeddings.norm(dim=1), torch.ones(len(first)))
    second = source(clip.frames[1], 1)
    unguided = DNetSource(config=config, device="cpu")(clip.frames[1], 5)
    assert not (
        len(second) == len(unguided) and torch.equal(second.scores, unguided.scores)
    )  # the frame before guides


@pytest.mark.slow
def test_guidance_by_tracks_is_an_option(clip: Clip) -> None:
    answers = []
    for guidance in ("saliency", "tracks"):
        segmenter = make("target_aware", changes={"guidance": guidance})
        results = to_the_end(segmenter, clip.frames[:3])
        assert stream_state(segmenter).guided
        answers.append((results[0].numpy(), stream_state(segmenter).guidance.clone()))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    assert not torch.equal(answers[0][1], answers[1][1])


@pytest.mark.parametrize(
    "changes", [{"squeeze": "literal"}, {"heads": "dense"}, {"verified_feeds": True}]
)
@pytest.mark.slow
def test_the_other_readings_of_the_paper_run(changes: dict[str, Any], clip: Clip) -> None:
    results = to_the_end(make("target_aware", changes=changes), clip.frames[:3])
    assert [result.frame_index for result in results] == [0, 1, 2]
    assert all(result.probabilities.isfinite().all() for result in results)


@pytest.mark.slow
def test_the_guidance_is_part_of_a_saved_stream(clip: Clip, tmp_path: Path) -> None:
    first, second = make("target_aware"), make("target_aware")
    first.save_state(tmp_path / "empty.safetensors")
    second.load_state(tmp_path / "empty.safetensors")
    for frame in clip.frames[:2]:
        first.step(frame)
    first.save_state(tmp_path / "stream.safetensors")
    second.load_state(tmp_path / "stream.safetensors")
    assert stream_state(second).guided
    assert torch.equal(stream_state(second).guidance, stream_state(first).guidance)
    assert stream_state(second).frame_count == 2
