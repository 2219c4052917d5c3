"""Training objectives of D-Net, ReID and T-Net, against the formulas and a stream."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch.nn import functional
from unsupervised_training import (
    HEIGHT,
    WIDTH,
    bce,
    clips,
    iou,
    numpy,
    seeded,
    sigmoid,
    target_aware,
)

from vosengine.config import TargetAwareConfig
from vosengine.kernels.fit_target.reference import fit_target
from vosengine.models.target_aware.appearance import first_weights, to_grid
from vosengine.models.target_aware.dnet import DNet, DNetFeatures, DNetMaps
from vosengine.models.target_aware.refiner import Refiner
from vosengine.proposals import boxes_of
from vosengine.training.losses import contrastive
from vosengine.training.objectives.appearance import Appearance
from vosengine.training.objectives.discovery import Discovery, discovery_targets
from vosengine.training.objectives.embedding import Embedding
from vosengine.training.objectives.objective import Clips, normalised


def masks_of_three() -> torch.Tensor:
    """Two frames: three objects, one of them in two pieces; then the second object alone."""
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    masks[0, 8:32, 8:24] = 1
    masks[0, 16:40, 40:72] = 2
    masks[0, 48:60, 8:20] = 3
    masks[0, 48:60, 80:84] = 3
    masks[1, 24:48, 44:80] = 2
    return masks


def test_discovery_targets_pixel_by_pixel() -> None:
    masks, sigma = masks_of_three(), 5.0
    targets = discovery_targets(masks, 3, sigma)
    for b, frame in enumerate(masks.numpy()):
        centres = {i: np.argwhere(frame == i).mean(axis=0) for i in (1, 2, 3) if (frame == i).any()}
        heat, offset = np.zeros(frame.shape), np.zeros((2, *frame.shape))
        for pixel in np.ndindex(frame.shape):
            away = [np.sum((c - pixel) ** 2) for c in centres.values()]
            heat[pixel] = max(np.exp(-d / (2 * sigma**2)) for d in away)
            if frame[pixel]:
                offset[(slice(None), *pixel)] = centres[frame[pixel]] - pixel
        np.testing.assert_allclose(targets.heatmap[b], heat, atol=1e-5)
        np.testing.assert_allclose(targets.offset[b], offset, atol=1e-4)
        np.testing.assert_array_equal(targets.foreground[b], frame > 0)


@pytest.mark.parametrize("objects", [0, 2])
def test_a_frame_without_objects_has_no_centres(objects: int) -> None:
    targets = discovery_targets(torch.zeros(1, 32, 48, dtype=torch.uint8), objects, 5.0)
    assert not any(target.any() for target in targets)


def perfect(masks: torch.Tensor, objects: int) -> DNetMaps:
    """The maps of a perfect D-Net."""
    wanted = discovery_targets(masks, objects, 8.0)
    logits = 20 * wanted.foreground[:, None] - 10
    planes = (logits, wanted.heatmap[:, None], wanted.offset / 4)
    return DNetMaps(*(functional.avg_pool2d(plane, 4) for plane in planes))


def test_maps_that_fit_the_targets_give_the_objects() -> None:
    dnet = target_aware().dnet
    masks = masks_of_three()[:1]
    masks[masks == 3] = 0
    maps = perfect(masks, 2)
    proposals = dnet.proposals(maps)
    assert len(proposals) == 2
    for value in (1, 2):
        overlap = [
            (p & (masks[0] == value)).sum() / (p | (masks[0] == value)).sum()
            for p in proposals.masks
        ]
        assert max(overlap) > 0.9
    near = Discovery().compare(maps, masks, 2)
    far = Discovery().compare(DNetMaps(*(torch.zeros_like(tensor) for tensor in maps)), masks, 2)
    for name, share in {"saliency": 0.3, "overlap": 0.3, "centre": 0.05, "offset": 0.2}.items():
        assert near[name] < share * far[name], name


@pytest.mark.parametrize(
    ("size", "sigma"), [((480, 864), 10.0), ((960, 1728), 20.0), ((64, 96), 8.0)]
)
def test_weights_and_sigma_are_those_of_the_papers_size(
    size: tuple[int, int], sigma: float
) -> None:
    """The loss of zero maps equals the formulas; a miss costs the same at every size."""
    masks = torch.zeros(1, *size, dtype=torch.uint8)
    third = size[0] // 3
    masks[0, third : 2 * third, third : 2 * third] = 1
    quarter = [side // 4 for side in size]
    zeros = DNetMaps(*(torch.zeros(1, channels, *quarter) for channels in (1, 1, 2)))
    losses = Discovery().compare(zeros, masks, 1)
    y, x = np.argwhere(masks[0].numpy()).T
    centre = y.mean(), x.mean()
    rows, columns = np.mgrid[: size[0], : size[1]]
    square = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    heat = np.exp(-square / (2 * sigma**2))
    scale = size[0] / 480
    weight = 800 * (10 / sigma) ** 2 * size[0] * size[1] / (480 * 854)
    away = np.abs(y - centre[0]) + np.abs(x - centre[1])
    assert losses["saliency"].item() == pytest.approx(np.log(2), rel=1e-5)
    shared, joined = len(y) / 2, len(y) + (size[0] * size[1] - len(y)) / 2
    assert losses["overlap"].item() == pytest.approx(1 - (shared + 1) / (joined + 1), rel=1e-4)
    assert losses["centre"].item() == pytest.approx(weight * (heat**2).mean(), rel=1e-3)
    assert losses["offset"].item() == pytest.approx(0.01 / scale * away.mean(), rel=1e-3)


class Knowing:
    """A D-Net that answers with the targets of one object only, or of all."""

    def __init__(self, masks: torch.Tensor, known: int) -> None:
        self.dnet = target_aware().dnet
        self.config = self.dnet.config
        self.proposals = self.dnet.proposals
        self.encode = self.dnet.encode
        self.guide = self.dnet.guide
        self.shown = [
            torch.where(masks[:, t] <= known, masks[:, t], 0) for t in range(masks.shape[1])
        ]

    def __call__(self, features: DNetFeatures, guidance: torch.Tensor | None) -> DNetMaps:
        return perfect(self.shown.pop(0), 2)


@pytest.mark.parametrize(("known", "least", "most"), [(2, 0.9, 1.0), (1, 0.72, 0.8), (0, 0.0, 0.0)])
def test_the_discovery_score_is_the_best_proposals_iou(
    known: int, least: float, most: float
) -> None:
    """Object 1 is in four frames, object 2 in one of them."""
    batch = clips(length=2)
    batch.masks[0, 1][batch.masks[0, 1] == 2] = 0
    frames = torch.zeros(2, 2, 3, HEIGHT, WIDTH)
    knowing = cast(DNet, Knowing(batch.masks, known))
    assert least <= Discovery().score(knowing, Clips(frames, batch.masks, 2)) <= most


@pytest.mark.parametrize("guidance", ["saliency", "tracks"])
def test_the_second_frame_is_guided_by_what_the_first_showed(guidance: str) -> None:
    method, batch = target_aware(guidance=guidance), clips(length=2)
    dnet, frames = method.dnet, normalised(batch.frames, method.config)
    losses = Discovery().losses(dnet, Clips(frames, batch.masks, 2), seeded())
    with torch.no_grad():
        first = dnet(dnet.encode(frames[:, 0]), None)
        saliency = torch.sigmoid(first.saliency)
        saliency = (saliency > 0.5).float() if guidance == "tracks" else saliency
        second = dnet(dnet.encode(frames[:, 1]), dnet.guide(frames[:, 0], saliency))
    wanted = [Discovery().compare(m, batch.masks[:, t], 2) for t, m in enumerate((first, second))]
    for name, value in losses.items():
        mean = (wanted[0][name] + wanted[1][name]) / 2
        assert value.item() == pytest.approx(mean.item(), rel=1e-4), name


# --- ReID and T-Net ---


def test_the_embedding_compares_every_object_in_every_frame() -> None:
    method, batch = target_aware(), clips()
    frames = normalised(batch.frames, method.config)
    batch.masks[0, 1][batch.masks[0, 1] == 2] = 0  # gone
    batch.masks[0, 2][batch.masks[0, 2] == 2] = 0
    batch.masks[0, 2, 3, 3] = 2  # too few pixels
    part = Embedding(views=9, jitter=0)
    loss = part.losses(method.reid, Clips(frames, batch.masks, 2), seeded())["embedding"]
    vectors, identities = [], []
    for clip, t, value in (
        (0, 0, 1),
        (0, 1, 1),
        (0, 2, 1),
        (0, 0, 2),
        (1, 0, 1),
        (1, 1, 1),
        (1, 2, 1),
    ):
        box = boxes_of(batch.masks[clip, t][None] == value)
        vectors.append(method.reid(frames[clip, t][None], box)[0])
        identities.append(2 * clip + value)
    wanted = contrastive(torch.stack(vectors), torch.tensor(identities), part.temperature)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.slow
def test_the_embedding_score_counts_crops_that_are_most_like_their_own() -> None:
    method, batch = target_aware(), clips()
    frames = torch.rand(batch.frames.shape, generator=seeded()).movedim(-1, -3)  # nothing to see
    part = Embedding(views=9, jitter=0)
    vectors, identities = [], []
    for clip, t, value in np.ndindex(2, 3, 2):
        owned = batch.masks[clip, t][None] == value + 1
        if owned.any():
            vectors.append(numpy(method.reid(frames[clip, t][None], boxes_of(owned))[0]))
            identities.append(2 * clip + value)
    likeness = np.stack(vectors) @ np.stack(vectors).T
    np.fill_diagonal(likeness, -2)
    right = [identities[i] == identities[row.argmax()] for i, row in enumerate(likeness)]
    assert part.score(method.reid, Clips(frames, batch.masks, 2)) == pytest.approx(np.mean(right))
    assert 0 < np.mean(right) < 1


def test_the_embedding_sees_as_many_views_as_it_may() -> None:
    batch = clips(length=5)
    owned = batch.masks[:, :, None] == torch.tensor([1, 2])[:, None, None]
    drawn = Embedding(views=2)._draw(owned, seeded())
    counts = torch.zeros(2, 2)
    for (clip, _), rows in drawn.items():
        counts[clip, rows] += 1
    assert counts.tolist() == [[2, 2], [2, 0]]


def test_boxes_are_jittered_by_a_share_of_their_sides() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]]).repeat(200, 1)
    moved = Embedding(jitter=0.25)._jittered(boxes, seeded()) - boxes
    assert (moved.abs().amax(dim=0) <= torch.tensor([5.0, 10.0, 5.0, 10.0])).all()
    assert (moved.abs().amax(dim=0) > torch.tensor([4.0, 8.0, 4.0, 8.0])).all()


def test_appearance_fits_the_first_frame_and_judges_a_later_one() -> None:
    method, batch = target_aware(), clips(count=1, length=2)
    config = cast(TargetAwareConfig, method.config)
    batch.frames[:, 1] = 255 - batch.frames[:, 1]  # looks like nothing that was fitted
    frames = normalised(batch.frames, config)
    losses = Appearance().losses(method, Clips(frames, batch.masks, 2), seeded())

    square = (config.tracker_size,) * 2
    stretched = functional.interpolate(frames[0], square, mode="bilinear", align_corners=False)
    labels = torch.stack([(batch.masks[0] == i).float() for i in (1, 2)], dim=1)
    labels = functional.interpolate(labels, square, mode="bilinear", align_corners=False)
    with torch.no_grad():
        pyramid = method.backbone(stretched)
        first, later = pyramid.r4[:1], pyramid.r4[1:]
        coarse = []
        projection, kernel = first_weights(config.target_channels, first.shape[1], first.device)
        for label in labels[0]:
            grid = to_grid(label[None], config.target_influence, first.shape[2:])
            w2, w1 = fit_target(
                *(first[None], grid.bands[None], grid.targets[None], torch.ones(1, 1)),
                *(kernel[None], projection[None]),
                iterations=config.first_iterations,
                ridge=config.ridge,
            )
            assert w1 is not None
            maps = functional.conv2d(later, w1[0, :, :, None, None])
            coarse.append(functional.conv2d(maps, w2, padding=1))
        reduced = [x[1:] for x in method.refiner.reduce(pyramid)]
        logits = method.refiner(torch.cat(coarse), reduced, square)
    p, target = sigmoid(numpy(logits)), numpy(labels[1])
    assert losses["track"].item() == pytest.approx(bce(p, target), rel=2e-5)
    assert losses["track_iou"].item() == pytest.approx(iou(p, target), rel=2e-5)


def test_appearance_follows_only_what_the_first_frame_shows() -> None:
    method, batch = target_aware(), clips(count=1)
    frames = normalised(batch.frames, method.config)
    part = Appearance(later=2)
    without = batch.masks.clone()
    without[without == 2] = 0
    alone = part.losses(method, Clips(frames, without, 2), seeded())
    batch.masks[0, 0][batch.masks[0, 0] == 2] = 0  # it comes late
    late = part.losses(method, Clips(frames, batch.masks, 2), seeded())
    assert {n: x.item() for n, x in late.items()} == {n: x.item() for n, x in alone.items()}


def test_the_appearance_score_is_the_iou_of_the_tracks() -> None:
    """With a refiner that says "everywhere", it is the object's share of the frame."""
    method, batch = target_aware(), clips()
    assert isinstance(method.refiner, Refiner)
    with torch.no_grad():
        method.refiner.upsample2.weight.zero_()
        assert method.refiner.upsample2.bias is not None
        method.refiner.upsample2.bias.fill_(1)
        batch.masks[0, 1][batch.masks[0, 1] == 2] = 0  # gone: an IoU of 0
        frames = normalised(batch.frames, method.config)
        score = Appearance().score(method, Clips(frames, batch.masks, 2))
    tracked = [(0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2), (1, 1, 1), (1, 2, 1)]
    shares = [(batch.masks[clip, t] == value).float().mean() for clip, t, value in tracked]
    assert score == pytest.approx(np.mean(shares), rel=0.03)
