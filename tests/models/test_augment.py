"""Augmented first frames: the object moves with its mask, its old place is filled in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vosengine.models.target_aware.augment import augment, fill
from vosengine.policies.placement import FLIP_CHANCE, SCALE, SHIFT, blur_width

SIDE = 96
OBJECT, GROUND = 3.0, -1.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ell(height: int = SIDE, width: int = SIDE) -> Tensor:
    """A mask [H, W] like a capital L, which differs from all its rotations and mirrorings."""
    label = torch.zeros(height, width, dtype=torch.bool)
    top, left = height // 2 - 18, width // 2 - 12
    label[top : top + 36, left : left + 14] = True
    label[top + 22 : top + 36, left : left + 26] = True
    return label


def painted(label: Tensor) -> Tensor:
    """A frame [1, 3, H, W] with the object and the background in one colour each."""
    return torch.where(label, OBJECT, GROUND).expand(1, 3, *label.shape).clone()


def grown(mask: Tensor, pixels: int) -> Tensor:
    wide = functional.max_pool2d(mask[:, None].float(), 2 * pixels + 1, 1, pixels)
    return wide[:, 0] > 0


def centres(labels: Tensor) -> Tensor:
    """[n, 2]: (x, y) of the mean pixel."""
    weight = labels.float()
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in labels.shape[1:]), indexing="ij")
    total = weight.sum(dim=(1, 2))
    return torch.stack([(weight * axis).sum(dim=(1, 2)) / total for axis in (x, y)], dim=1)


def test_the_same_generator_gives_the_same_frames_and_another_others() -> None:
    label = ell()
    first, again, other = (augment(painted(label), label, 3, generator(s)) for s in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert not torch.equal(first[1][0], first[1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_shapes_and_types(count: int, dtype: torch.dtype) -> None:
    label = ell(80, 120)
    frame = painted(label).to(dtype)
    originals = frame.clone(), label.clone()
    frames, labels = augment(frame, label, count, generator())
    assert frames.shape == (count, 3, 80, 120) and frames.dtype == dtype
    assert labels.shape == (count, 80, 120) and labels.dtype == torch.bool
    assert torch.equal(frame, originals[0]) and torch.equal(label, originals[1])


def test_the_mask_moves_with_the_object_and_nothing_stays_behind() -> None:
    label = ell()
    frames, labels = augment(painted(label), label, 30, generator(3))
    inside, outside = ~grown(~labels, 3), ~grown(labels, 4)
    assert inside.flatten(1).any(dim=1).float().mean() > 0.8
    colour = frames.mean(dim=1)
    assert (colour[inside] - OBJECT).abs().max() < 0.25  # the rest is the blur
    assert (colour[outside] - GROUND).abs().max() < 0.05
    assert (labels[:, label].float().mean(dim=1) < 0.6).any(), "the object has left its place"


def test_transformations_stay_within_their_ranges_and_fill_them() -> None:
    height, width = 120, 180
    label = ell(height, width)
    labels = augment(painted(label), label, 150, generator(4))[1]
    shift = (centres(labels) - centres(label[None])) / torch.tensor([width, height])
    pixels = labels.sum(dim=(1, 2)) / label.sum()
    whole = (labels.flatten(1).sum(dim=1) > 0) & ~_touches_the_border(labels)
    shift, scale = shift[whole], pixels[whole].sqrt()
    assert shift.abs().max() < SHIFT + 0.005
    assert scale.min() > SCALE[0] - 0.03 and scale.max() < SCALE[1] + 0.03
    assert (shift.amax(dim=0) > 0.8 * SHIFT).all() and (shift.amin(dim=0) < -0.8 * SHIFT).all()
    assert scale.min() < 0.8 and scale.max() > 1.35
    shapes = torch.stack([_elongation(mask) for mask in labels[whole]])
    torch.testing.assert_close(shapes, _elongation(label).expand_as(shapes), rtol=0.06, atol=0)


def _elongation(mask: Tensor) -> Tensor:
    """Length over width, which is invariant to rotation and scale."""
    spread = torch.linalg.eigvalsh(torch.cov(mask.nonzero().double().T))
    return (spread[1] / spread[0]).sqrt()


def _touches_the_border(labels: Tensor) -> Tensor:
    inner = functional.pad(labels[:, 1:-1, 1:-1], (1, 1, 1, 1))
    return (labels & ~inner).flatten(1).any(dim=1)


@pytest.mark.slow
def test_about_one_in_three_is_mirrored_and_two_in_five_are_blurred() -> None:
    label = ell(240, 240)
    frames, labels = augment(painted(label), label, 80, generator(5))
    mirrored, soft = 0, 0
    for frame, mask in zip(frames, labels, strict=True):
        mirrored += int(_skewness(mask) * _skewness(label) < 0)
        edge = grown(mask[None], 3)[0] & ~grown(mask[None], 2)[0]
        soft += int((frame[0][edge] - GROUND).abs().max() > 1e-3)
    assert mirrored / 80 == pytest.approx(FLIP_CHANCE, abs=0.1)
    assert 0.15 < soft / 80 < 0.45, "the weakest are not seen three pixels away"


def _skewness(mask: Tensor) -> float:
    """A moment of the mask, invariant to rotation and scale; mirroring changes its sign."""
    y, x = mask.nonzero().double().T
    z = torch.complex(x - x.mean(), y - y.mean())
    second, third = (z**2).mean(), (z**2 * z.conj()).mean()
    return float((second * third.conj() ** 2).imag)


@pytest.mark.parametrize("place", ["corner", "middle", "line", "whole frame"])
def test_no_label_is_ever_empty(place: str) -> None:
    label = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    if place == "corner":
        label[:2, :5] = True
    elif place == "middle":
        label[40:42, 40:45] = True
    elif place == "line":
        label[50, 20:30] = True
    else:
        label[:] = True
    frames, labels = augment(painted(label), label, 100, generator(6))
    assert labels.flatten(1).any(dim=1).all()
    assert frames.isfinite().all()


def test_an_object_thrown_out_of_the_frame_stays_where_it_was() -> None:
    label = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    label[:2, :5] = True
    frame = painted(label)
    frames, labels = augment(frame, label, 200, generator(7))
    stayed = (labels == label).flatten(1).all(dim=1)
    assert 20 < stayed.sum() < 200
    assert (frames[stayed] == frame).all()


def test_a_frame_without_the_object_is_given_back() -> None:
    label = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    frame = torch.randn(1, 3, SIDE, SIDE, generator=generator())
    frames, labels = augment(frame, label, 2, generator())
    assert (frames == frame).all() and not labels.any()


def test_filling_keeps_what_is_known_and_takes_the_rest_from_around() -> None:
    known = torch.ones(1, 1, 61, 47)
    known[:, :, 20:45, 10:40] = 0
    image = torch.randn(1, 3, 61, 47, generator=generator())
    image[:, :, :, 24:] += 10
    spoiled = torch.where(known > 0, image, torch.tensor(1e6))
    filled = fill(spoiled, known)
    assert torch.equal(filled[known.expand_as(image) > 0], image[known.expand_as(image) > 0])
    assert filled.min() >= image.min() and filled.max() <= image.max()
    assert filled[..., 20:45, 11].mean() < 3 < 7 < filled[..., 20:45, 38].mean()
    flat = fill(torch.where(known > 0, 2.5, -1e6), known)
    torch.testing.assert_close(flat, torch.full_like(flat, 2.5))
    assert torch.equal(fill(image, torch.zeros_like(known)), torch.zeros_like(image))


def test_nothing_waits_for_the_device() -> None:
    """Runs on meta tensors, which raise if a value is read."""
    frame, label = painted(ell()).to("meta"), ell().to("meta")
    frames, labels = augment(frame, label, 5, generator())
    assert frames.shape == (5, 3, SIDE, SIDE) and labels.shape == (5, SIDE, SIDE)


@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0])
def test_a_blur_reaches_three_deviations(amount: float) -> None:
    sigma, radius = blur_width(amount, 480)
    assert 3 * sigma <= radius < 3 * sigma + 1
