"""Behaviour that every model must have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import object_ids, tiny_source
from quick_streams import (
    SIZE,
    assert_counted,
    assert_same,
    assert_sound,
    begin,
    nothing,
    play,
    rectangle,
    stream_state,
)

from vosengine.config import MemoryConfig
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import InputError, StateError
from vosengine.frames import prepare
from vosengine.proposals import Proposals, boxes_of, to_network
from vosengine.training.synthetic import Clip, ClipConfig, make_clip
from vosengine.types import Geometry, Result

# Streaming


def of_frame(features: Any, index: int) -> Any:
    """The features of one frame of a batch."""
    if isinstance(features, torch.Tensor):
        return features[index : index + 1]
    if hasattr(features, "_fields"):
        return type(features)(*(of_frame(field, index) for field in features))
    if isinstance(features, tuple) and all(isinstance(part, torch.Tensor) for part in features):
        return tuple(of_frame(part, index) for part in features)
    return None if features is None else (features[index],)  # an entry for every frame


def encode_ahead(segmenter: Segmenter, frames: np.ndarray) -> None:
    """Encode all frames in one batch; every step then uses its part of the features."""
    method = segmenter.method
    geometry = Geometry.fit(SIZE, size=segmenter.size, multiple=method.stride)
    images = [torch.from_numpy(frame) for frame in frames]
    mean, std = method.config.mean, method.config.std
    batch = torch.stack([prepare(i, geometry, mean, std, segmenter.dtype) for i in images])
    source, arguments = segmenter.proposals, ()
    if source is not None:
        detected = (source(image, index) for index, image in enumerate(images))
        arguments = ([to_network(proposals, geometry, segmenter.device) for proposals in detected],)
    with torch.no_grad():
        features = method.encode(batch, *arguments)
    segmenter._encode = lambda job: of_frame(features, segmenter.frame_count)


def in_float64(segmenter: Segmenter) -> Segmenter:
    segmenter.dtype = torch.float64
    segmenter.method.double()
    return segmenter


@pytest.mark.slow
def test_streaming_is_what_a_batch_of_all_frames_gives(any_model: str, small: Clip) -> None:
    """In float64, so that rounding decides nothing: some models remember what a threshold says, and
    a pixel that flips there is carried on by a random network. Nothing differed; in float32 GIEL,
    which remembers labels, did by 0.2 after eight frames, and the others by 3e-5."""
    prompts = {0: small.masks[0], 3: np.where(small.masks[3] == 2, 2, 0).astype(np.uint8)}
    answers = []
    for ahead in (False, True):
        segmenter = in_float64(begin(any_model))
        if ahead:
            encode_ahead(segmenter, small.frames)
        answers.append(play(segmenter, small.frames, prompts))
    assert [result.frame_index for result in answers[0]] == list(range(8))
    for one, other in zip(*answers, strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=0, atol=1e-9)


def test_a_stream_that_begins_anew_gives_the_same_bits(any_model: str, small: Clip) -> None:
    segmenter = begin(any_model)
    first = play(segmenter, small.frames[:3], {0: small.masks[0]})
    segmenter.reset()
    assert (segmenter.ids, segmenter.frame_count, segmenter.geometry) == ((), 0, None)
    assert_same(play(segmenter, small.frames[:3], {0: small.masks[0]}), first)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 32), (45, 120)])
def test_any_frame_size(any_model: str, size: tuple[int, int]) -> None:
    """Every frame has a result, in order; the first one is the prompt itself."""
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[5:20, 5:20] = 9
    segmenter = begin(any_model)
    results = play(segmenter, frames, {0: mask})
    assert [result.frame_index for result in results] == [0, 1, 2]
    for result in results:
        assert_sound(result, size)
    if segmenter.method.takes_mask:
        np.testing.assert_array_equal(results[0].numpy() == 9, mask == 9)
    if segmenter.method.needs_mask:
        assert [result.ids for result in results] == [(9,)] * 3


# Streams that go on elsewhere


def assert_goes_on(
    first: Segmenter, second: Segmenter, clip: Clip, path: Path, *, changed: bool
) -> None:
    """After four frames in the first stream, both give bitwise equal results."""
    takes = first.method.takes_mask
    prompts = {0: clip.masks[0], 2: rectangle(4, 40, 9, 12, 77)}
    for index, frame in enumerate(clip.frames[:4]):
        prompted = takes and (changed or index == 0)
        first.step(frame, prompts.get(index) if prompted else None)
    if takes and changed:
        # With one that discovers objects all others go, so that it does so again.
        for gone in (1,) if first.method.needs_mask else {*first.ids} - {77}:
            first.remove(gone)
    first.save_state(path)
    second.load_state(path)
    assert second.ids == first.ids
    assert (77 in second.ids) == (takes and changed)
    wanted, results = (play(s, clip.frames[4:7], {1: clip.masks[5]}) for s in (first, second))
    assert len(wanted) == 3 + first.latency
    assert_same(results, wanted)


@pytest.mark.parametrize("changed", [False, True])
def test_a_stream_goes_on_in_another_segmenter(
    any_model: str, changed: bool, small: Clip, tmp_path: Path
) -> None:
    """Including the state of its proposal source; also if objects were added and removed."""
    options: dict[str, Any] = {"size": 40} if changed else {}
    first, second = (begin(any_model, **options) for _ in range(2))
    if first.method.needs_proposals:  # none of its own: here from a source that remembers
        first.proposals, second.proposals = tiny_source(), tiny_source()
    assert_goes_on(first, second, small, tmp_path / "stream.safetensors", changed=changed)


@pytest.mark.parametrize("policy", ["every-2", "all", "afb"])
def test_a_stream_goes_on_with_any_memory(
    matching_model: str, policy: str, small: Clip, tmp_path: Path
) -> None:
    memory = MemoryConfig(policy=policy, max_frames=4)
    first, second = (begin(matching_model, memory=memory) for _ in range(2))
    assert_goes_on(first, second, small, tmp_path / "stream.safetensors", changed=True)


def test_a_memory_by_argument_is_the_memory_of_a_configuration(
    matching_model: str, small: Clip, tmp_path: Path
) -> None:
    """Frames are kept alike, and a saved stream means the same."""
    memory, file = MemoryConfig("every-2", max_frames=3), tmp_path / "stream.safetensors"
    options: list[dict[str, Any]] = [{"memory": memory}, {"changes": {"memory": memory}}]
    first, second, other = (begin(matching_model, **arguments) for arguments in (*options, {}))
    prompts = {0: small.masks[0]}
    answers = [play(segmenter, small.frames, prompts) for segmenter in (first, second, other)]
    assert_same(*answers[:2])
    assert stream_state(first).every == stream_state(second).every == 2 != stream_state(other).every
    assert stream_state(first).memory.table.shape == stream_state(second).memory.table.shape
    second.save_state(file)
    first.load_state(file)
    assert stream_state(first).every == 2
    assert_same(play(first, small.frames[:5]), play(second, small.frames[:5]))
    with pytest.raises(StateError, match="config"):
        other.load_state(file)


# The caller's masks


def test_objects_come_are_corrected_and_go(prompted_model: str, small: Clip) -> None:
    """Prompted objects are exact, others continue, removed ones are gone."""
    segmenter = begin(prompted_model)

    def step(index: int, mask: np.ndarray | None = None) -> Result:
        result = segmenter.step(small.frames[index], mask)
        assert result is not None
        assert_sound(result)
        assert result.ids == segmenter.ids
        for object_id in () if mask is None else object_ids(mask):
            np.testing.assert_array_equal(result.numpy() == object_id, mask == object_id)
        return result

    step(0, np.where(small.masks[0] == 1, 40, 0).astype(np.uint8))
    others = {*step(1).ids} - {40}  # discovered
    assert not (others and segmenter.method.needs_mask)
    assert {*step(2, rectangle(20, 30, 12, 20, 200)).ids} >= {40, 200, *others}
    corrected = step(3, rectangle(6, 6, 20, 16, 40))
    assert {*corrected.ids} >= {40, 200, *others}
    segmenter.remove(40)
    assert 40 not in segmenter.ids
    left = step(4)
    assert 40 not in left.ids
    assert 200 in left.ids
    for object_id in left.ids:
        segmenter.remove(object_id)
    assert segmenter.ids == ()
    empty = step(5)
    assert not {*empty.ids} & {*corrected.ids}
    assert (not empty.labels.any() and empty.ids == ()) or not segmenter.method.needs_mask
    assert 40 in step(6, rectangle(6, 6, 20, 16, 40)).ids  # its id may be used anew
    assert 40 in step(7).ids


def test_a_mask_of_zeros_says_nothing(prompted_model: str, small: Clip) -> None:
    """In any form, also in the first frame if no mask is required."""
    prompted, calm = (begin(prompted_model) for _ in range(2))
    zeros = np.zeros(SIZE, np.uint8)
    forms: list[Any] = [zeros, zeros > 0, torch.from_numpy(zeros), zeros.astype(np.int64), zeros]
    first = small.masks[0] if prompted.method.needs_mask else None
    results = [prompted.step(small.frames[0], zeros if first is None else first)]
    wanted = [calm.step(small.frames[0], first)]
    for frame, empty in zip(small.frames[1:6], forms, strict=True):
        results.append(prompted.step(frame, empty))
        wanted.append(calm.step(frame))
    assert prompted.ids == calm.ids
    assert_same([r for r in results if r is not None], [r for r in wanted if r is not None])
    # So it may be batched, or a graph.
    assert prompted.make_job(small.frames[6], zeros).prompt is None


def test_several_objects_go_at_once_or_not_at_all(prompted_model: str, small: Clip) -> None:
    together, singly, calm = (begin(prompted_model) for _ in range(3))
    prompts = {0: np.maximum(small.masks[0], rectangle(36, 44, 9, 16, 30))}
    for segmenter in (together, singly, calm):
        play(segmenter, small.frames[:2], prompts)
    for bad in ([1, 99], (30, 1, 0), [1, "2"]):
        with pytest.raises(InputError, match=r"^remove: "):
            together.remove(bad)
    together.remove([])
    assert together.ids == calm.ids
    assert_same(play(together, small.frames[2:4]), play(calm, small.frames[2:4]))
    play(singly, small.frames[2:4])
    together.remove([1, 30, 1])
    singly.remove(1)
    singly.remove(30)
    assert together.ids == singly.ids
    assert not {1, 30} & {*together.ids}
    assert_same(play(together, small.frames[4:6]), play(singly, small.frames[4:6]))


def test_when_one_goes_the_others_do_not_care_which_slot_it_had(
    prompted_model: str,
) -> None:
    """One of three goes: from slot 0, so that the last one moves there, or from slot 2, so that
    none does. In float64, see above: 2e-14 was seen; and with another clip, for in the usual one
    two objects of GIEL's tie within the last bit, on some processors and in some layouts."""
    config = ClipConfig(frames=6, height=SIZE[0], width=SIZE[1], objects=(2, 2))
    small = make_clip(config, seed=4)
    mask = np.maximum(small.masks[0], rectangle(36, 44, 9, 16, 3))
    assert object_ids(mask) == {1, 2, 3}
    answers = []
    for gone, left in ((1, (2, 3)), (3, (1, 2))):
        segmenter = in_float64(begin(prompted_model, engine="eager"))
        if not segmenter.method.needs_mask:
            segmenter.proposals = nothing  # no further object is discovered
        play(segmenter, small.frames[:3], {0: np.array([0, gone, *left], np.uint8)[mask]})
        segmenter.remove(gone)
        results = play(segmenter, small.frames[3:6])
        assert all(result.ids == left for result in results)
        answers.append([result.probabilities for result in results])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
        assert (one[1] - one[2]).abs().max() > 1e-6  # they do differ


def test_a_model_that_takes_no_mask_refuses_it_and_goes_on(
    unprompted_model: str, small: Clip
) -> None:
    disturbed = begin(unprompted_model, online=True)
    wanted = play(begin(unprompted_model, online=True), small.frames[:4])
    results = []
    for index, frame in enumerate(small.frames[:4]):
        for mask in (small.masks[index], small.masks[index] * 0):
            with pytest.raises(InputError, match=f"^mask: {unprompted_model} finds the foregro"):
                disturbed.step(frame, mask)
        results.append(disturbed.step(frame))
        with pytest.raises(InputError, match=f"^remove: {unprompted_model} answers with one"):
            disturbed.remove(1 if index % 2 else [1])
    assert_same(results, wanted)


PROMPTS: dict[str, Callable[[], np.ndarray]] = {
    "1": lambda: grid_of(1),
    "2": lambda: grid_of(2),
    "5": lambda: grid_of(5),
    "10": lambda: grid_of(10),
    "the whole frame": lambda: np.full(SIZE, 3, np.uint8),
    "one pixel": lambda: rectangle(20, 31, 1, 1, 255),
    "beside one pixel": lambda: np.maximum(rectangle(4, 4, 20, 20, 6), rectangle(40, 50, 1, 1, 7)),
    "alike": lambda: np.maximum(rectangle(16, 0, 16, 16, 5), rectangle(16, 32, 16, 16, 9)),
}


def grid_of(objects: int) -> np.ndarray:
    """Small objects side by side; ids with gaps, in arbitrary order."""
    mask = np.zeros(SIZE, np.uint8)
    for number in range(objects):
        top, left = 4 + 22 * (number // 5), 2 + 12 * (number % 5)
        mask[top : top + 16, left : left + 9] = 1 + (number * 87 + 200) % 255
    return mask


@pytest.mark.parametrize("prompt", PROMPTS)
def test_few_many_large_small_and_like_objects(prompted_model: str, prompt: str) -> None:
    """Sound, exact where it was given, and the same bits twice. Two objects that are alike are the
    same patch of noise, shifted by two cells, and so may be the proposals."""
    frames = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
    mask = PROMPTS[prompt]()
    if prompt == "alike":
        frames[:, :, 32:] = frames[:, :, :32]
    segmenter = begin(prompted_model, max_objects=12)
    if prompt == "alike" and segmenter.method.takes_proposals:
        masks = torch.from_numpy(np.stack([mask == 5, mask == 9]))
        twice = Proposals(boxes_of(masks), masks, torch.tensor([0.5, 0.5]))
        segmenter.proposals = lambda frame, index: twice
    answers = []
    for _ in range(2):
        segmenter.reset()
        answers.append(play(segmenter, frames, {0: mask}))
    assert_same(*answers)
    named = object_ids(mask)
    for result in answers[0]:
        assert_sound(result)
        assert {*result.ids} >= named
        assert {*result.ids} == named or not segmenter.method.needs_mask
    for object_id in named:
        np.testing.assert_array_equal(answers[0][0].numpy() == object_id, mask == object_id)


def without(segmenter: Segmenter, *object_ids: int) -> Callable[..., Any]:
    """The method's `segment`, with these objects suppressed."""
    real = segmenter.method.segment

    def segment(seen: Any, state: Any) -> Any:
        scores = real(seen, state)
        for object_id in object_ids:
            scores.logits[segmenter.slots.slot(object_id)] = -1e4
        return scores

    return segment


def test_an_object_that_vanishes_stays_alive_and_can_be_corrected(
    any_model: str, small: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them for two frames, then all for two more."""
    segmenter = begin(any_model, online=True)
    takes = segmenter.method.takes_mask
    frames = small.frames
    first = segmenter.step(frames[0], small.masks[0] if takes else None)
    assert first is not None
    for step, gone in enumerate((first.ids[:1],) * 2 + (first.ids,) * 2, start=1):
        with monkeypatch.context() as patch:
            patch.setattr(segmenter.method, "segment", without(segmenter, *gone))
            result = segmenter.step(frames[step])
        assert result is not None
        assert_sound(result)
        assert {*result.ids} >= {*first.ids}
        assert not object_ids(result.numpy()) & {*gone}
    after = segmenter.step(frames[5])
    assert after is not None
    assert_sound(after)
    assert {*after.ids} >= {*first.ids}
    if takes:
        again = segmenter.step(frames[6], small.masks[6])
        assert again is not None
        assert again.ids == after.ids
        for object_id in object_ids(small.masks[6]):
            np.testing.assert_array_equal(again.numpy() == object_id, small.masks[6] == object_id)
        last = segmenter.step(frames[7])
        assert last is not None
        assert_sound(last)


def test_memory_does_not_grow(any_model: str) -> None:
    """Neither the allocation of `start`, nor the saved state, nor the ring grows."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[4:20, 4:15], mask[10:28, 18:30] = 1, 2
    segmenter = begin(any_model, max_objects=3)
    takes, sees, allocated = segmenter.method.takes_mask, segmenter.method.sees, set()
    for index, frame in enumerate(frames):
        segmenter.step(frame, mask if takes and index == 0 else None)
        state = stream_state(segmenter)
        assert_counted(state)
        allocated.add(state.nbytes)
        assert sum(tensor.nbytes for tensor in state.tensors().values()) <= state.nbytes + 256
        assert len(segmenter.ring) <= max(sees) - min(sees)
    assert len(allocated) == 1
