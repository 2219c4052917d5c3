"""Target-aware U-VOS: discovery, identity, verification, learning, and limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make, object_ids, to_the_end
from exact_discovery import ExactDiscovery
from quick_streams import stream_state

from vosengine.engine.segmenter import Segmenter
from vosengine.errors import ConfigError, InputError
from vosengine.models.target_aware.network import TrackState
from vosengine.proposals import Proposals, boxes_of
from vosengine.training.synthetic import Clip

NOTHING = Proposals(torch.zeros(0, 4), torch.zeros(0, 96, 96, dtype=torch.bool), torch.zeros(0))
SEEING = {"refiner": "none", "tracker_size": 128, "tracker_width": 16, "target_channels": 16}


def following(masks: np.ndarray, *, changes: dict[str, Any] | None = None, **options: Any):  # type: ignore[no-untyped-def]
    """A tracker whose proposals are the objects of these masks, frame by frame."""
    source = ExactDiscovery(masks)
    return make("target_aware", changes={**SEEING, **(changes or {})}, proposals=source, **options)


def squares(frames: int, **places: Any) -> tuple[np.ndarray, np.ndarray]:
    """Frames 96 x 96 of coloured squares of 24 pixels, and their masks. Every keyword is a colour
    and a function from frame index to (top, left), or to None where the square is not there."""
    random = np.random.default_rng(0)
    ground = random.integers(90, 110, (96, 96, 3))
    images = np.repeat(ground[None], frames, axis=0)
    masks = np.zeros((frames, 96, 96), np.uint8)
    for number, (colour, place) in enumerate(places.items(), start=1):
        shade = {"red": (230, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 240)}[colour]
        for index in range(frames):
            at = place(index)
            if at is not None:
                window = index, slice(at[0], at[0] + 24), slice(at[1], at[1] + 24)
                images[window], masks[window] = shade, number
    return images.astype(np.uint8), masks


def samples_of(segmenter: Segmenter) -> list[int]:
    filled: list[int] = stream_state(segmenter).tracks.samples.filled
    return filled[: len(segmenter.ids)]


# Discovery and identity


def test_objects_are_discovered_in_the_first_frame_and_keep_their_ids() -> None:
    frames, masks = squares(8, red=lambda t: (8 + 2 * t, 8), green=lambda t: (56, 60 - 3 * t))
    segmenter = following(masks)
    for result, mask in zip(to_the_end(segmenter, frames), masks, strict=True):
        assert result.ids == (1, 2)
        for object_id in (1, 2):
            assert len(object_ids(mask[result.numpy() == object_id])) == 1  # of one object only
        np.testing.assert_array_equal(result.numpy() > 0, mask > 0)
    assert samples_of(segmenter) == [10, 10]


@pytest.mark.parametrize("whose", ["proposal", "own"])
@pytest.mark.slow
def test_a_verified_track_takes_the_proposals_mask_or_keeps_its_own(whose: str) -> None:
    """Proposals that are wider than their square by a band, after the first frame."""
    frames, masks = squares(4, red=lambda t: (36, 36))
    wide = masks.copy()
    wide[1:, 32:64, 32:64] = 1
    segmenter = following(wide, changes={"verified_mask": whose})
    results = to_the_end(segmenter, frames)
    assert [result.ids for result in results] == [(1,)] * 4
    assert samples_of(segmenter) == [1 + 4 + 3]  # with augmentations; each later frame verified
    matches = [np.array_equal(result.numpy(), wide[2]) for result in results[1:]]
    assert matches == [whose == "proposal"] * 3


@pytest.mark.slow
def test_what_is_seen_with_little_confidence_begins_no_track() -> None:
    frames, masks = squares(3, red=lambda t: (8, 8), blue=lambda t: (60, 60))

    def source(frame: Any, index: int) -> Proposals:
        proposals = ExactDiscovery(masks)(frame, index)
        return replace(proposals, scores=torch.tensor([0.9, 0.4]))

    def ids(least: float) -> tuple[int, ...]:
        changes = {**SEEING, "birth_score": least}
        return to_the_end(make("target_aware", changes=changes, proposals=source), frames)[-1].ids

    assert (ids(0.4), ids(0.5), ids(0.95)) == ((1, 2), (1,), ())


def test_an_object_that_comes_later_has_a_new_id() -> None:
    frames, masks = squares(6, red=lambda t: (8, 8), blue=lambda t: (60, 60) if t >= 3 else None)
    results = to_the_end(following(masks), frames)
    assert [result.ids for result in results] == [(1,)] * 3 + [(1, 2)] * 3
    np.testing.assert_array_equal(results[3].numpy() == 2, masks[3] == 2)


def test_a_track_that_leaves_is_kept_and_found_again_under_its_id() -> None:
    frames, masks = squares(
        12, red=lambda t: (8, 8 + t), green=lambda t: None if 4 <= t < 8 else (60, 50)
    )
    segmenter = following(masks)
    results = to_the_end(segmenter, frames)
    assert all(result.ids == (1, 2) for result in results)
    green = int(results[0].numpy()[70, 60])
    for index, result in enumerate(results):
        seen = int((result.numpy() == green).sum())
        assert seen == 24 * 24 if index < 4 or index >= 8 else seen < 60


def test_while_it_is_away_a_track_learns_nothing() -> None:
    frames, masks = squares(7, red=lambda t: (8, 8), green=lambda t: (60, 50) if t < 2 else None)
    segmenter = following(masks, changes={"smallest_sample": 500})
    filled, kernels = [], []
    for frame in frames:
        segmenter.step(frame)
        filled.append(samples_of(segmenter))
        kernels.append(stream_state(segmenter).tracks.kernel[:2].clone())
    green = int(np.argmin(filled[-1]))
    assert [counts[green] for counts in filled] == [5, 6, 6, 6, 6, 6, 6]
    assert [counts[1 - green] for counts in filled] == [5, 6, 7, 8, 9, 10, 10]
    assert torch.equal(kernels[-1][green], kernels[1][green])
    assert not torch.equal(kernels[-1][1 - green], kernels[1][1 - green])


def test_a_mask_below_ten_pixels_is_not_learnt_from() -> None:
    frame = squares(1, red=lambda t: (30, 30))[0][0]
    segmenter = make("target_aware", changes=SEEING, proposals=lambda image, index: NOTHING)
    counts = []
    for pixels in (576, 10, 9, 1, 11):
        mask = np.zeros((96, 96), np.uint8)
        rows = np.argwhere(np.ones((24, 24)))[:pixels] + 30
        mask[rows[:, 0], rows[:, 1]] = 7
        result = segmenter.step(frame, mask)
        assert result is not None
        assert int((result.numpy() == 7).sum()) == pixels
        counts.append(samples_of(segmenter)[0])
    assert counts == [5, 6, 6, 6, 7]
    assert segmenter.ids == (7,)


def test_a_scene_cut_ends_no_track_and_starts_new_ones() -> None:
    before, masks_before = squares(4, red=lambda t: (8, 8))
    after, masks_after = squares(4, blue=lambda t: (60, 60), green=lambda t: (8, 64))
    frames = np.concatenate((before, 255 - after))
    masks = np.concatenate((masks_before, masks_after))
    segmenter = following(masks)
    results = to_the_end(segmenter, frames)
    assert results[3].ids == (1,)
    assert results[4].ids == results[7].ids == (1, 2, 3)
    assert object_ids(results[4].numpy()) >= {2, 3}


def test_a_removed_tracks_id_is_never_given_again() -> None:
    frames, masks = squares(6, red=lambda t: (8, 8), green=lambda t: (60, 50))
    segmenter = following(masks)
    segmenter.step(frames[0])
    red = int(segmenter.step(frames[1]).numpy()[10, 10])  # type: ignore[union-attr]
    segmenter.remove(red)
    result = segmenter.step(frames[2])
    assert result is not None
    assert red not in result.ids
    assert result.ids == (3 - red, 3)  # discovered anew
    np.testing.assert_array_equal(result.numpy() == 3, masks[2] == 1)
    assert len(stream_state(segmenter).born) == 2


def test_the_last_track_takes_the_place_of_a_forgotten_one() -> None:
    frames, masks = squares(
        4,
        red=lambda t: (8, 8),
        green=lambda t: (60, 50) if t >= 1 else None,
        blue=lambda t: (60, 8) if t >= 3 else None,
    )
    segmenter = following(masks)
    for frame in frames:
        segmenter.step(frame)
    state: TrackState = stream_state(segmenter)
    assert state.born == [0, 1, 3]
    last = state.first_embedding[2].clone(), state.tracks.kernel[2].clone()
    segmenter.remove(1)
    assert (state.born, state.object_count, state.tracks.count) == ([3, 1], 2, 2)
    assert torch.equal(state.first_embedding[0], last[0])
    assert torch.equal(state.tracks.kernel[0], last[1])


def grid_of(count: int, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A frame with `count` small squares, and their mask."""
    frame, mask = np.full((96, 192, 3), 100, np.uint8), np.zeros((96, 192), np.uint8)
    for number in range(count):
        y, x = 4 + 18 * (number // 10), 4 + 18 * (number % 10)
        frame[y : y + side, x : x + side] = 5 * number, 255 - 5 * number, 40
        mask[y : y + side, x : x + side] = number + 1
    return frame, mask


@pytest.mark.slow
def test_fifty_objects_where_twenty_are_allowed() -> None:
    frame, mask = grid_of(50)
    masks = mask[None].repeat(2, axis=0)
    changes = {**SEEING, "augmentations": 0, "first_iterations": (2,)}
    everything = [torch.from_numpy(mask == i + 1) for i in range(50)]
    planes = torch.stack(everything)
    fifty = Proposals(boxes_of(planes), planes, torch.linspace(1, 0.1, 50))
    for source in (ExactDiscovery(masks), lambda image, index: fifty):
        segmenter = make("target_aware", changes=changes, proposals=source)
        result = segmenter.step(frame)
        assert result is not None
        assert result.ids == tuple(range(1, 21))
        result = segmenter.step(frame)
        assert result is not None
        assert result.ids == tuple(range(1, 21))
    changes["max_tracks"] = 3  # also where there would be room for more
    few = make("target_aware", changes=changes, max_objects=10, proposals=lambda i, t: fifty)
    result = few.step(frame)
    assert result is not None
    assert result.ids == (1, 2, 3)
    for object_id in result.ids:  # the best come first
        np.testing.assert_array_equal(result.numpy() == object_id, mask == object_id)
    # The caller may start more than discovery does; then nothing is discovered.
    prompt = np.where((mask > 30) & (mask <= 34), mask, 0).astype(np.uint8)
    prompted = few.step(frame, prompt)
    later = few.step(frame)
    assert prompted is not None
    assert later is not None
    assert prompted.ids == later.ids == (1, 2, 3, 31, 32, 33, 34)


def test_frames_without_any_foreground() -> None:
    segmenter = make("target_aware")
    segmenter.method.dnet.saliency_head.predict.bias.fill_(-1e4)
    results = to_the_end(segmenter, np.full((3, 64, 96, 3), 80, np.uint8))
    assert len(results) == 3
    for result in results:
        assert result.ids == ()
        assert not result.labels.any()
        assert (result.probabilities == 1).all()


@pytest.mark.parametrize("length", [0, 1, 2])
def test_short_clips_and_flush(length: int, clip: Clip) -> None:
    segmenter = make("target_aware")
    assert segmenter.latency == 0
    assert segmenter.flush() == []
    for frame in clip.frames[:length]:
        assert segmenter.step(frame) is not None
    assert segmenter.flush() == segmenter.flush() == []


# The caller's masks


def test_a_mask_starts_a_track_of_its_id_which_is_followed() -> None:
    frames, masks = squares(5, red=lambda t: (8 + 2 * t, 8), green=lambda t: (56, 60 - 3 * t))
    segmenter = following(masks)
    prompt = np.where(masks[0] == 2, 77, 0).astype(np.uint8)
    results = [segmenter.step(frame, prompt if t == 0 else None) for t, frame in enumerate(frames)]
    for result, mask in zip(results, masks, strict=True):
        assert result is not None
        assert result.ids == (1, 77)  # the green one was discovered too, and is not doubled
        np.testing.assert_array_equal(result.numpy() == 77, mask == 2)
        np.testing.assert_array_equal(result.numpy() == 1, mask == 1)


def test_a_correction_is_learnt_as_verified_and_becomes_the_first_mask() -> None:
    frames, masks = squares(4, red=lambda t: (8, 8), green=lambda t: (56, 60))
    segmenter = following(masks, changes={"samples": 20})
    for frame in frames[:2]:
        segmenter.step(frame)
    red = int(segmenter.step(frames[2]).numpy()[10, 10])  # type: ignore[union-attr]
    state: TrackState = stream_state(segmenter)
    slot = segmenter.slots.slot(red)
    before = state.first_embedding.clone()
    corrected = np.zeros((96, 96), np.uint8)
    corrected[8:40, 8:20] = red
    segmenter.proposals = lambda image, index: NOTHING  # nothing else verifies it
    result = segmenter.step(frames[3], corrected)
    assert result is not None
    np.testing.assert_array_equal(result.numpy() == red, corrected > 0)
    newest = state.tracks.samples.weight[slot, state.tracks.samples.filled[slot] - 1]
    assert float(newest) == pytest.approx(0.1 * 2)  # gamma, doubled
    assert not torch.equal(state.first_embedding[slot], before[slot])
    assert torch.equal(state.first_embedding[1 - slot], before[1 - slot])


# Learning


@pytest.mark.slow
def test_a_verified_track_is_updated_at_once_and_others_every_eighth_frame() -> None:
    frames, masks = squares(18, red=lambda t: (8, 8))
    for overlap, wanted in ((0.5, list(range(1, 18))), (0.999, [8, 16])):
        segmenter = following(masks, changes={"match_overlap": overlap, "samples": 40})
        if overlap > 0.9:  # the tracked mask is not that exact: never verified
            segmenter.method._associate = lambda *arguments: ([None] * len(arguments[1]), [])
            segmenter.step(frames[0], masks[0])
        else:
            segmenter.step(frames[0])
        updated: list[list[int]] = []
        stream_state(segmenter).tracks.update = updated.append
        for frame in frames[1:]:
            segmenter.step(frame)
        assert [index for index, slots in enumerate(updated, start=1) if slots == [0]] == wanted


def test_memory_is_flat_once_the_samples_are_full() -> None:
    frames, masks = squares(16, red=lambda t: (8, 8 + t))
    segmenter = following(masks, changes={"samples": 6})
    segmenter.step(frames[0])
    tracks = stream_state(segmenter).tracks
    banks = [tracks.samples.features, tracks.samples.bands, tracks.samples.targets]
    before = [bank.data_ptr() for bank in banks], stream_state(segmenter).nbytes
    for frame in frames[1:]:
        segmenter.step(frame)
    assert samples_of(segmenter) == [6]
    banks = [tracks.samples.features, tracks.samples.bands, tracks.samples.targets]
    assert ([bank.data_ptr() for bank in banks], stream_state(segmenter).nbytes) == before


# What it refuses, and how it goes on


def test_a_memory_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory: target_aware has no memory"):
        make("target_aware", memory="every-5")


@pytest.mark.slow
def test_embeddings_of_another_network_are_refused_and_change_nothing() -> None:
    frames, masks = squares(3, red=lambda t: (8, 8))
    disturbed, calm = following(masks), following(masks)
    good = disturbed.proposals

    def foreign(frame: torch.Tensor, index: int) -> Proposals:
        proposals = good(frame, index)
        return Proposals(
            proposals.boxes, proposals.masks, proposals.scores, torch.ones(len(proposals), 7)
        )

    for index, frame in enumerate(frames):
        disturbed.proposals = foreign
        with pytest.raises(InputError, match=r"embeddings: wanted \[P, 16\].*given \[1, 7\]"):
            disturbed.step(frame)
        disturbed.proposals = good
        one, other = disturbed.step(frame), calm.step(frame)
        assert one is not None
        assert other is not None
        assert disturbed.frame_count == index + 1
        assert torch.equal(one.probabilities, other.probabilities)


@pytest.mark.slow
def test_a_saved_stream_goes_on_with_the_same_labels(tmp_path: Path) -> None:
    frames, masks = squares(
        10, red=lambda t: (8 + 2 * t, 8), green=lambda t: (56, 60 - 3 * t) if t != 5 else None
    )
    whole, first, second = (following(masks) for _ in range(3))
    wanted = to_the_end(whole, frames)
    for frame in frames[:4]:
        first.step(frame)
    first.save_state(tmp_path / "stream.safetensors")
    second.load_state(tmp_path / "stream.safetensors")
    for a, b in zip(to_the_end(second, frames[4:]), wanted[4:], strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.probabilities, b.probabilities)
