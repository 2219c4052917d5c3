"""Augmentation of training clips: masks follow frames, ids stay without gaps."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

from vosengine.training import augment as augment_module
from vosengine.training.augment import augment
from vosengine.training.object_ids import renumber
from vosengine.training.samples import Sample

SIZE = (48, 64)
COLOURS = np.array([[40, 40, 40], [250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)


def same(a: Sample, b: Sample) -> bool:
    return (
        np.array_equal(a.frames, b.frames)
        and np.array_equal(a.masks, b.masks)
        and a.origin == b.origin
    )


def coded(frames: int = 4, height: int = 60, width: int = 90) -> Sample:
    """Three moving boxes whose colours tell their ids."""
    masks = np.zeros((frames, height, width), np.uint8)
    for time in range(frames):
        masks[time, 8:28, 10 + 4 * time : 40 + 4 * time] = 1
        masks[time, 34:54, 30:70] = 2
        masks[time, 10 + 2 * time : 40, 64:84] = 3
    return Sample(COLOURS[masks], masks, "boxes")


def test_masks_follow_the_frames() -> None:
    """Away from edges a pixel's colour gives its id, at any brightness."""
    clip, kept, seen = coded(), 0, 0
    for seed in range(60):
        out = augment(clip, (40, 60), np.random.default_rng(seed))
        assert out.frames.shape == (4, 40, 60, 3) and out.masks.shape == (4, 40, 60)
        assert out.frames.dtype == out.masks.dtype == np.uint8 and out.origin == clip.origin
        colours: dict[int, list[np.ndarray]] = {}
        for frame, mask in zip(out.frames.astype(int), out.masks, strict=True):
            flat = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5))) == 0
            # At the border the ramp between two colours may lie outside, its end inside.
            flat[[0, 1, 2, -3, -2, -1]] = flat[:, [0, 1, 2, -3, -2, -1]] = False
            for label in np.unique(mask):
                inner = frame[flat & (mask == label)]
                if len(inner):
                    assert np.ptp(inner, axis=0).max() <= 2, (seed, label)
                    colours.setdefault(int(label), []).append(inner[0])
        means = {label: np.mean(values, axis=0) for label, values in colours.items()}
        for label, values in colours.items():  # the same light in every frame
            assert np.abs(np.array(values) - means[label]).max() <= 2, (seed, label)
        seen += len(means)
        kept += len(np.unique(np.round(list(means.values())), axis=0))
    assert seen > 150 and kept > 0.9 * seen  # but for a few in grey, the colours stay apart


@pytest.mark.parametrize("factor", [1, 6])
def test_masks_and_frames_agree_to_a_fraction_of_a_pixel(factor: int) -> None:
    """The middle of a box's pixels against that of its mask, which a reduction must not shift."""
    mask = np.zeros((1, 60 * factor, 90 * factor), np.uint8)
    mask[:, 12 * factor : 47 * factor, 20 * factor : 71 * factor] = 1
    clip = Sample(COLOURS[2 * mask], mask, "")
    shifts = []
    for seed in range(60):
        out = augment(clip, (60, 90), np.random.default_rng(seed))
        if out.masks.all():
            continue
        light = out.frames[0].astype(float).sum(axis=-1)
        background, box = (np.median(light[out.masks[0] == label]) for label in (0, 1))
        if abs(box - background) < 20:
            continue
        cover = (light - background) / (box - background)
        grid = np.indices(cover.shape).reshape(2, -1)
        shifts.append(
            grid @ cover.ravel() / cover.sum() - grid @ out.masks[0].ravel() / out.masks[0].sum()
        )
    assert len(shifts) > 30
    assert np.abs(np.median(shifts, axis=0)).max() < 0.05
    assert np.quantile(np.abs(shifts), 0.9) < 0.3


def test_a_whole_still_view_is_the_clip_or_its_mirror_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SCALE": (1, 1), "ASPECT": 0, "MOVING": 0, "JITTER": 0}.items():
        monkeypatch.setattr(augment_module, name, value)
    masks, seen = coded().masks, set()
    ways = [masks[::t, :, ::x] for t in (1, -1) for x in (1, -1)]
    for seed in range(30):
        out = augment(coded(), masks.shape[1:], np.random.default_rng(seed)).masks
        which = [way for way, wanted in enumerate(ways) if np.array_equal(out, wanted)]
        assert which, seed
        seen.update(which)
    assert seen == {0, 1, 2, 3}


def test_ids_have_no_gaps_and_an_object_stays_in_the_first_frame() -> None:
    clip, counts = coded(), Counter[int]()
    clip.masks[1:] = np.where(clip.masks[1:] == 3, 0, clip.masks[1:])
    tiny = np.zeros_like(clip.masks)
    tiny[0, 59, 88:] = 9
    for seed in range(80):
        out = augment(clip, (40, 60), np.random.default_rng(seed))
        ids = np.unique(out.masks)
        assert np.array_equal(ids[ids > 0], np.arange(1, out.masks.max() + 1))
        assert out.masks[0].any()
        counts[int(out.masks.max())] += 1
        corner = augment(Sample(clip.frames, tiny, ""), (60, 90), np.random.default_rng(seed))
        assert set(np.unique(corner.masks[0])) == {0, 1} and not corner.masks[1:].any()
    assert len(counts) > 1  # some crops lose an object


def test_a_clip_without_objects_stays_one() -> None:
    clip = coded()
    out = augment(
        Sample(clip.frames, np.zeros_like(clip.masks), ""), SIZE, np.random.default_rng(1)
    )
    assert not out.masks.any() and out.masks.shape == (4, *SIZE)


def test_augmentation_is_a_function_of_clip_size_and_generator() -> None:
    clip = coded()
    frames, masks = clip.frames.copy(), clip.masks.copy()
    first = augment(clip, SIZE, np.random.default_rng(5))
    assert np.array_equal(frames, clip.frames) and np.array_equal(masks, clip.masks)
    assert same(first, augment(clip, SIZE, np.random.default_rng(5)))
    assert not same(first, augment(clip, SIZE, np.random.default_rng(6)))


def test_clips_are_flipped_reversed_scaled_and_made_grey() -> None:
    """Determined by the centre of a box that moves from left to right."""
    masks = np.zeros((3, 60, 90), np.uint8)
    for time in range(3):
        masks[time, 25:35, 4 + 3 * time : 16 + 3 * time] = 1
    clip = Sample(COLOURS[masks], masks, "")
    right, left, grey, areas = 0, 0, 0, []
    for seed in range(120):
        out = augment(clip, (60, 90), np.random.default_rng(seed))
        where = [np.nonzero(mask)[1].mean() for mask in out.masks if mask.any()]
        right += where[-1] > where[0]
        left += where[-1] < where[0]
        grey += bool((np.ptp(out.frames.astype(int), axis=-1) <= 2).all())
        areas.append(int(out.masks[0].sum()))
    assert right > 40 and left > 40
    assert 1 <= grey < 25
    assert np.quantile(areas, 0.9) > 2.5 * np.quantile(areas, 0.1)


def test_large_frames_are_averaged_not_sampled() -> None:
    """A chequerboard of single pixels turns into one grey, not into stripes."""
    board = (np.indices((320, 480)).sum(axis=0) % 2 * 200).astype(np.uint8)
    masks = np.zeros((1, 320, 480), np.uint8)
    clip = Sample(np.repeat(board[None, ..., None], 3, axis=3), masks, "")
    spread = [
        np.std(augment(clip, (40, 60), np.random.default_rng(seed)).frames) for seed in range(10)
    ]
    assert max(spread) < 12


def test_renumbering_keeps_the_order_and_no_more_than_asked() -> None:
    masks = np.array([[[0, 3, 7, 255], [0, 3, 0, 9]]], np.uint8)
    assert renumber(masks).tolist() == [[[0, 1, 2, 4], [0, 1, 0, 3]]]
    assert renumber(masks, 2).tolist() == [[[0, 1, 2, 0], [0, 1, 0, 0]]]
    chosen = {renumber(masks, 2, np.random.default_rng(seed)).tobytes() for seed in range(40)}
    assert len(chosen) == 6
    assert all(max(data) == 2 and set(data) == {0, 1, 2} for data in chosen)


def test_a_framed_clip_is_not_cropped() -> None:
    """It may be flipped, played backwards and recoloured; at another size it is cropped."""
    masks = np.zeros((3, 32, 48), np.uint8)
    for time in range(3):
        masks[time, 4:12, 3 + 5 * time : 20] = 1
    clip = Sample(np.repeat(masks[..., None] * 99, 3, 3), masks, "framed", framed=True)
    wanted = (masks, masks[::-1], masks[:, :, ::-1], masks[::-1, :, ::-1])
    seen = set()
    for seed in range(40):
        changed = augment(clip, (32, 48), np.random.default_rng(seed))
        inside = changed.masks == 1
        assert changed.framed
        assert changed.frames[inside].mean() > changed.frames[~inside].mean()
        seen.add(changed.masks.tobytes())
    assert seen == {np.ascontiguousarray(one).tobytes() for one in wanted}
    assert augment(clip, (16, 24), np.random.default_rng(0)).masks.shape == (3, 16, 24)
