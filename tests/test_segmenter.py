"""The engine's promises: streaming, stable ids, bad input without effect, streams that resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import WITH_HARD_MASKS, follow, make, object_ids, tiny_config

from vosengine import Segmenter
from vosengine.config import MemoryConfig
from vosengine.errors import ConfigError, DeviceError, InputError
from vosengine.training.synthetic import Clip


def test_first_frame_answers_with_the_mask_itself(model: str, clip: Clip) -> None:
    result = make(model).step(clip.frames[0], clip.masks[0])
    assert result is not None
    assert result.labels.dtype == torch.uint8
    np.testing.assert_array_equal(result.numpy(), clip.masks[0])
    assert (result.ids, result.frame_index) == ((1, 2), 0)


def test_every_frame_is_answered_at_once(model: str, clip: Clip) -> None:
    results = follow(make(model), clip.frames, clip.masks[0])
    assert [result.frame_index for result in results] == list(range(10))
    for result in results:
        assert result.labels.shape == (65, 99)
        assert object_ids(result.numpy()) <= {1, 2}
        rows = result.probabilities
        assert rows.shape == (3, 65, 99)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.sum(dim=0), torch.ones(65, 99))
        np.testing.assert_array_equal(rows.argmax(dim=0), result.labels)


def test_ids_are_the_callers_with_any_gaps(model: str, clip: Clip) -> None:
    """Relabelled 1 -> 200 and 2 -> 9, the answer is the same under the new names and row order."""
    renamed = np.array([0, 200, 9], np.uint8)
    frames = clip.frames[: 2 if model in WITH_HARD_MASKS else 4]
    plain = follow(make(model), frames, clip.masks[0])
    named = follow(make(model), frames, renamed[clip.masks[0]])
    assert named[-1].ids == (9, 200)
    for a, b in zip(plain, named, strict=True):
        # The rows of a batch round differently in another order, and a random network carries
        # that on from frame to frame: 8e-5 seen after four.
        torch.testing.assert_close(a.probabilities[[0, 2, 1]], b.probabilities, atol=3e-4, rtol=0)
        first, second = a.probabilities.topk(2, dim=0).values
        decided = (first - second > 1e-4).numpy()
        np.testing.assert_array_equal(renamed[a.numpy()][decided], b.numpy()[decided])


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 32), (45, 120)])
def test_any_frame_size(model: str, size: tuple[int, int]) -> None:
    segmenter = make(model)
    random = np.random.default_rng(0)
    mask = np.zeros(size, np.uint8)
    mask[5:20, 5:20] = 1
    for index in range(3):
        frame = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        result = segmenter.step(frame, None if index else mask)
        assert result is not None
        assert result.labels.shape == size
        assert torch.isfinite(result.probabilities).all()


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


def test_an_object_added_in_mid_stream(model: str, clip: Clip) -> None:
    """The given mask is the answer; the others go on; the new one is there from then on."""
    segmenter = make(model)
    only_first = np.where(clip.masks[0] == 1, 1, 0).astype(np.uint8)
    follow(segmenter, clip.frames[:4], only_first)
    late = np.where(clip.masks[4] == 2, 77, 0).astype(np.uint8)
    result = segmenter.step(clip.frames[4], late)
    assert result is not None
    assert result.ids == (1, 77)
    np.testing.assert_array_equal(result.numpy() == 77, late == 77)
    after = segmenter.step(clip.frames[5])
    assert after is not None
    assert after.ids == (1, 77)
    assert after.probabilities.shape[0] == 3


def test_an_added_object_leaves_the_memories_of_others_alone(
    matching_model: str, clip: Clip
) -> None:
    """The state of the first object after the addition is what its own masks alone make it."""
    segmenter = make(matching_model)
    only_first = np.where(clip.masks[0] == 1, 1, 0).astype(np.uint8)
    follow(segmenter, clip.frames[:4], only_first)
    before = segmenter._state.memory.read(1).keys[:, :1].clone()
    segmenter.step(clip.frames[4], np.where(clip.masks[4] == 2, 2, 0).astype(np.uint8))
    torch.testing.assert_close(segmenter._state.memory.read(1).keys[:, :1], before, atol=0, rtol=0)
    lengths = segmenter._state.memory.read(2).length.tolist()
    assert lengths[0] > lengths[1] > 0


def test_a_removed_object_is_gone_and_the_others_keep_their_masks(model: str, clip: Clip) -> None:
    """Whichever object goes, the one left gives what a stream of its own would have given."""
    for gone, left in ((1, 2), (2, 1)):
        segmenter = make(model)
        segmenter.step(clip.frames[0], clip.masks[0])
        segmenter.remove(gone)
        assert segmenter.ids == (left,)
        result = segmenter.step(clip.frames[1])
        assert result is not None
        assert result.ids == (left,)
        assert object_ids(result.numpy()) <= {left}
        assert segmenter._state.object_count == 1
        segmenter.remove(left)
        empty = segmenter.step(clip.frames[2])
        assert empty is not None
        assert (empty.ids, int(empty.labels.max())) == ((), 0)
        again = segmenter.step(clip.frames[3], clip.masks[3])
        assert again is not None
        np.testing.assert_array_equal(again.numpy(), clip.masks[3])


def test_removal_keeps_the_right_memory(matching_model: str, clip: Clip) -> None:
    segmenter = make(matching_model)
    follow(segmenter, clip.frames[:3], clip.masks[0])
    second = segmenter._state.memory.read(2).keys[
        1, : int(segmenter._state.memory.read(2).length[1])
    ]
    wanted = second.clone()
    segmenter.remove(1)
    stored = segmenter._state.memory.read(1)
    torch.testing.assert_close(stored.keys[0, : int(stored.length[0])], wanted, atol=0, rtol=0)


def test_a_correction_overrides_an_object(model: str, clip: Clip) -> None:
    segmenter = make(model)
    follow(segmenter, clip.frames[:3], clip.masks[0])
    correction = np.where(clip.masks[3] == 2, 2, 0).astype(np.uint8)
    result = segmenter.step(clip.frames[3], correction)
    assert result is not None
    assert result.ids == (1, 2)
    np.testing.assert_array_equal(result.numpy() == 2, correction == 2)


@pytest.mark.parametrize("policy", ["every-5", "every-1", "all", "afb"])
def test_every_memory_policy_works_and_is_bounded(
    matching_model: str, policy: str, clip: Clip
) -> None:
    segmenter = make(matching_model, memory=MemoryConfig(policy=policy, max_frames=3, budget=400))
    sizes = set()
    for result in follow(segmenter, clip.frames, clip.masks[0]):
        assert torch.isfinite(result.probabilities).all()
        memory = segmenter._state.memory
        sizes.add((memory.keys.data_ptr(), tuple(memory.keys.shape), memory.values.data_ptr()))
        stored = memory.read(2)
        assert int(stored.length.max()) <= stored.keys.shape[1]
    assert len(sizes) == 1


def test_a_memory_policy_by_name() -> None:
    assert make("stm", memory="every-3").method.config.memory == MemoryConfig("every-3", 4)
    with pytest.raises(ConfigError, match=r"memory\.policy: wanted every-N, all or afb"):
        make("stm", memory="often")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_gives_what_the_cpu_gives(model: str, clip: Clip) -> None:
    near = follow(make(model), clip.frames[:5], clip.masks[0])
    segmenter = Segmenter(model, device="cuda", config=tiny_config(model))
    for wanted, found in zip(near, follow(segmenter, clip.frames[:5], clip.masks[0]), strict=True):
        assert found.labels.is_cuda
        difference = (wanted.probabilities - found.probabilities.cpu()).abs()
        assert float(difference.mean()) < 1e-2  # convolutions may use TF32 there


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close(model: str, precision: str, clip: Clip) -> None:
    exact = follow(make(model), clip.frames[:3], clip.masks[0])[-1]
    rough = follow(make(model, precision=precision), clip.frames[:3], clip.masks[0])[-1]
    assert rough.probabilities.dtype == torch.float32
    assert float((exact.probabilities - rough.probabilities).abs().mean()) < 0.05


def bad_frames(clip: Clip) -> dict[str, tuple[Any, str]]:
    frame = clip.frames[0]
    nan = frame.astype(np.float32) / 255
    nan[3, 4, 1] = np.nan
    return {
        "dtype": (frame.astype(np.int64), "wanted dtype uint8 or float32"),
        "rank": (frame[..., 0], "wanted rank 3"),
        "channels": (frame[..., :2], "wanted 3 channels"),
        "channels first": (frame.transpose(2, 0, 1), "channels go last"),
        "type": ([[1]], "wanted a numpy array or a torch tensor"),
        "tiny": (frame[:20], "at least 32 x 32"),
        "other size": (frame[:64], "the stream is 65 x 99, given 64 x 99"),
        "nan": (nan, "NaN"),
        "range": (frame.astype(np.float32), "divide by 255"),
    }


def bad_masks(clip: Clip) -> dict[str, tuple[Any, str]]:
    mask = clip.masks[0]
    many = mask.copy()
    many[0, :5] = [11, 12, 13, 14, 15]
    return {
        "size": (mask[:-1], "wanted the frame's size"),
        "only 0": (np.zeros_like(mask), "only id 0"),
        "256": (mask.astype(np.int32) * 200, "1..255"),
        "negative": (mask.astype(np.int32) - 1, "1..255"),
        "float": (mask.astype(np.float32), "integer dtype"),
        "too many": (many, "more than max_objects = 3"),
        "type": ("mask.png", "wanted a numpy array or a torch tensor"),
    }


def test_bad_input_says_what_is_wrong_and_changes_nothing(model: str, clip: Clip) -> None:
    """After every refused call the stream goes on as if it had never been made."""
    disturbed, calm = make(model, max_objects=3), make(model, max_objects=3)
    for segmenter in (disturbed, calm):
        follow(segmenter, clip.frames[:2], clip.masks[0])
    for frame, message in bad_frames(clip).values():
        with pytest.raises(InputError, match=message):
            disturbed.step(frame)
    for mask, message in bad_masks(clip).values():
        with pytest.raises(InputError, match=message):
            disturbed.step(clip.frames[2], mask)
    with pytest.raises(InputError, match="no object 3; alive: 1, 2"):
        disturbed.remove(3)
    assert disturbed.frame_count == 2
    for a, b in zip(clip.frames[2:5], clip.frames[2:5], strict=True):
        one, other = disturbed.step(a), calm.step(b)
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=0, rtol=0)


def test_bad_first_frame_starts_no_stream(model: str, clip: Clip) -> None:
    segmenter = make(model)
    with pytest.raises(InputError, match="needs one with the first frame"):
        segmenter.step(clip.frames[0])
    for mask, message in bad_masks(clip).values():
        if "max_objects" not in message:
            with pytest.raises(InputError, match=message):
                segmenter.step(clip.frames[0], mask)
    small = segmenter.step(clip.frames[0][:40, :50], clip.masks[0][:40, :50])
    assert small is not None
    assert small.labels.shape == (40, 50)


def test_a_fault_inside_the_network_leaves_the_stream_as_it_was(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed, calm = make("munet"), make("munet")
    for segmenter in (disturbed, calm):
        follow(segmenter, clip.frames[:2], clip.masks[0])
    with monkeypatch.context() as patch:
        patch.setattr(disturbed.method, "remember", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            disturbed.step(clip.frames[2], np.where(clip.masks[2] == 1, 5, 0).astype(np.uint8))
    assert (disturbed.ids, disturbed.frame_count) == (calm.ids, calm.frame_count)
    one, other = disturbed.step(clip.frames[2]), calm.step(clip.frames[2])
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.probabilities, other.probabilities, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_objects": 0}, ConfigError, "max_objects: wanted 1..255"),
        ({"precision": "int8"}, ConfigError, "precision: wanted one of"),
        ({"size": 8}, ConfigError, "size: wanted 32"),
        ({"device": "cuda:99"}, DeviceError, "finds"),
        ({"device": "abacus"}, DeviceError, "wanted auto, cpu, cuda"),
        ({"device": "meta"}, DeviceError, "wanted auto, cpu, cuda"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Segmenter("stm", **options)
    with pytest.raises(ConfigError, match="wanted one of stm, munet"):
        Segmenter("sam")


def test_reset_begins_another_stream(model: str, clip: Clip) -> None:
    segmenter = make(model)
    first = follow(segmenter, clip.frames[:3], clip.masks[0])
    segmenter.reset()
    assert (segmenter.ids, segmenter.frame_count, segmenter.geometry) == ((), 0, None)
    for a, b in zip(first, follow(segmenter, clip.frames[:3], clip.masks[0]), strict=True):
        torch.testing.assert_close(a.probabilities, b.probabilities, atol=0, rtol=0)
