"""Options of the Segmenter: frame types, sizes, memories and precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import follow, make, tiny_config
from quick_streams import stream_state
from stored_memory import positions

from vosengine import Segmenter
from vosengine.config import MemoryConfig
from vosengine.errors import ConfigError
from vosengine.training.synthetic import Clip


def test_frames_may_be_numpy_torch_float_or_strided(clip: Clip) -> None:
    frame, mask = clip.frames[1], clip.masks[0]
    wide = np.zeros((65, 2 * 99, 3), np.uint8)
    wide[:, ::2] = frame
    bgr = np.ascontiguousarray(frame[..., ::-1])
    forms = [
        frame,
        torch.from_numpy(frame),
        frame.astype(np.float32) / 255,
        wide[:, ::2],
        bgr[..., ::-1],
    ]
    answers = []
    for form in forms:
        segmenter = make("stm")
        segmenter.step(clip.frames[0], torch.from_numpy(mask.astype(np.int32)))
        result = segmenter.step(form)
        assert result is not None
        answers.append(result.probabilities)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-4, rtol=0)


def test_working_at_another_size(model: str, clip: Clip) -> None:
    segmenter = make(model, size=48)
    results = follow(segmenter, clip.frames[:3], clip.masks[0])
    assert segmenter.geometry is not None
    assert min(segmenter.geometry.resized) == 48
    np.testing.assert_array_equal(results[0].numpy(), clip.masks[0])
    for result in results:
        assert result.labels.shape == (65, 99)
        np.testing.assert_array_equal(result.probabilities.argmax(dim=0), result.labels)


def test_an_added_object_leaves_the_memories_of_others_alone(
    matching_model: str, clip: Clip
) -> None:
    """The state of the first object after the addition depends only on its own masks."""
    segmenter = make(matching_model)
    only_first = np.where(clip.masks[0] == 1, 1, 0).astype(np.uint8)
    follow(segmenter, clip.frames[:4], only_first)
    before = positions(stream_state(segmenter).memory.read(1), 0)[0].clone()
    segmenter.step(clip.frames[4], np.where(clip.masks[4] == 2, 2, 0).astype(np.uint8))
    stored = stream_state(segmenter).memory.read(1)
    page = stored.keys.shape[1]
    torch.testing.assert_close(positions(stored, 0)[0][:page], before[:page], atol=0, rtol=0)
    lengths = stream_state(segmenter).memory.read(2).length.tolist()
    assert lengths[0] > lengths[1] > 0


def test_removal_keeps_the_right_memory(matching_model: str, clip: Clip) -> None:
    segmenter = make(matching_model)
    follow(segmenter, clip.frames[:3], clip.masks[0])
    wanted = positions(stream_state(segmenter).memory.read(2), 1)[0].clone()
    segmenter.remove(1)
    remaining = positions(stream_state(segmenter).memory.read(1), 0)[0]
    torch.testing.assert_close(remaining, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("policy", ["every-5", "every-1", "all", "afb"])
def test_every_memory_policy_works_and_is_bounded(
    matching_model: str, policy: str, clip: Clip
) -> None:
    segmenter = make(matching_model, memory=MemoryConfig(policy=policy, max_frames=3, budget=400))
    sizes = []
    for result in follow(segmenter, clip.frames, clip.masks[0]):
        assert torch.isfinite(result.probabilities).all()
        memory = stream_state(segmenter).memory
        stored = memory.read(2)
        sizes.append(stored.keys.nbytes + stored.values.nbytes)
        cells = stored.keys.shape[1] * (1 if stored.pages is None else stored.pages.shape[1])
        assert int(stored.length.max()) <= cells
    assert sizes[3:] == sizes[3:4] * len(sizes[3:])


def test_a_memory_policy_by_name() -> None:
    segmenter = make("stm", memory="every-3")
    assert segmenter.memory == MemoryConfig("every-3", 4)
    assert segmenter.method.config.memory == MemoryConfig(max_frames=4)  # as the weights have it
    assert make("giel").memory is None
    with pytest.raises(ConfigError, match=r"memory\.policy: wanted every-N, all or afb"):
        make("stm", memory="often")


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(model: str, clip: Clip) -> None:
    near = follow(make(model), clip.frames[:5], clip.masks[0])
    segmenter = Segmenter(model, device="cuda", config=tiny_config(model))
    for wanted, result in zip(near, follow(segmenter, clip.frames[:5], clip.masks[0]), strict=True):
        assert result.labels.is_cuda
        difference = (wanted.probabilities - result.probabilities.cpu()).abs()
        assert float(difference.mean()) < 1e-2  # convolutions may use TF32 there


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close(model: str, precision: str, clip: Clip) -> None:
    exact = follow(make(model), clip.frames[:3], clip.masks[0])[-1]
    rough = follow(make(model, precision=precision), clip.frames[:3], clip.masks[0])[-1]
    assert rough.probabilities.dtype == torch.float32
    assert float((exact.probabilities - rough.probabilities).abs().mean()) < 0.05
