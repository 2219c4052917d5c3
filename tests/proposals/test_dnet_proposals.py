"""D-Net's proposals: from maps made of masks back to these masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from vosengine.config import TargetAwareConfig
from vosengine.errors import InputError
from vosengine.models.target_aware.dnet import DNet, DNetMaps
from vosengine.training.synthetic import ClipConfig, make_clip

SIZE = (96, 160)


def net_with(**changes: Any) -> DNet:
    """The narrowest network: proposals come from maps and settings, not from weights."""
    narrow: dict[str, Any] = {"backbone": "resnet18", "width": 2, "aspp_channels": 4}
    return DNet(TargetAwareConfig(**{**narrow, "smallest_proposal": 16, **changes})).eval()


def maps_of(
    labels: np.ndarray, heats: Sequence[float], logit: float = 20, sigma: float = 2.5
) -> DNetMaps:
    """Maps of a perfect network for labels [H, W]; one heat per object 1..N."""
    ids = range(1, len(heats) + 1)
    planes = torch.from_numpy(np.stack([labels == i for i in ids])).float()
    shares = functional.avg_pool2d(planes, 4)  # [N, h, w]
    y, x = torch.meshgrid(*(torch.arange(n).float() for n in shares.shape[1:]), indexing="ij")
    cells = torch.stack((y, x))  # [2, h, w]
    centres = (shares[:, None] * cells).sum(dim=(2, 3)) / shares.sum(dim=(1, 2))[:, None]
    ways = centres[:, :, None, None] - cells  # [N, 2, h, w]
    squared = ways.square().sum(dim=1)
    heat = torch.tensor(heats)[:, None, None] * torch.exp(-squared / (2 * sigma**2))
    # In the background: to the nearest centre, as a network goes on smoothly past a border.
    owner = (10 * shares - squared / squared.max()).argmax(dim=0)
    offset = ways.gather(0, owner.expand(1, 2, -1, -1))
    saliency = 2 * logit * (shares.sum(dim=0) - 0.5)
    return DNetMaps(saliency[None, None], heat.amax(dim=0)[None, None], offset)


def overlap(mask: torch.Tensor, labels: np.ndarray, i: int) -> float:
    wanted = torch.from_numpy(labels == i)
    return float((mask & wanted).sum() / (mask | wanted).sum())


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_a_clips_masks_come_back_from_its_maps(seed: int) -> None:
    config = ClipConfig(frames=1, height=192, width=320, objects=(3, 3), size=(0.05, 0.1))
    labels = make_clip(config, seed).masks[0]
    proposals = net_with().proposals(maps_of(labels, (0.7, 0.9, 0.8)))
    assert len(proposals) == 3 and proposals.embeddings is None
    assert proposals.masks.shape == (3, 192, 320) and proposals.masks.dtype == torch.bool
    assert (proposals.masks.sum(dim=0) <= 1).all()
    by_heat = zip(proposals.boxes, proposals.masks, proposals.scores, (2, 3, 1), strict=True)
    for box, mask, score, i in by_heat:
        assert overlap(mask, labels, i) > 0.9
        rows, columns = (np.nonzero(mask.numpy().any(axis=axis))[0] for axis in (1, 0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert 0.97 < score <= 1


def test_pixels_go_where_their_offsets_lead() -> None:
    """The bar's ends lie nearer to the squares' centres than to its own; offsets decide."""
    labels = np.zeros(SIZE, np.uint8)
    labels[40:48, 16:144] = 1
    labels[52:68, 16:32] = 2
    labels[20:36, 128:144] = 3
    proposals = net_with().proposals(maps_of(labels, (0.9, 0.8, 0.7)))
    assert len(proposals) == 3
    assert all(overlap(mask, labels, i) > 0.95 for i, mask in enumerate(proposals.masks, 1))


def test_no_foreground_no_proposals() -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[16:48, 16:48] = 1
    maps = maps_of(labels, (0.9,))
    low = maps._replace(saliency=torch.zeros_like(maps.saliency))  # exactly at the threshold
    none = net_with().proposals(low)
    fields = (none.boxes, none.masks, none.scores)
    assert [tuple(field.shape) for field in fields] == [(0, 4), (0, *SIZE), (0,)]
    assert none.scores.dtype == none.boxes.dtype == torch.float32
    assert len(net_with(saliency_threshold=0.49).proposals(low)) == 1


def test_foreground_without_a_centre_is_one_proposal() -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[16:48, 16:48] = 1
    labels[56:88, 100:140] = 2
    proposals = net_with().proposals(maps_of(labels, (0.09, 0.05)))  # the threshold is 0.1
    assert len(proposals) == 1
    assert overlap(proposals.masks[0], (labels > 0).astype(np.uint8), 1) > 0.95
    assert proposals.boxes.tolist() == [[16, 16, 140, 88]]


def test_groups_below_the_smallest_proposal_are_dropped() -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[16:32, 16:32] = 1
    labels[48:80, 80:120] = 2
    maps = maps_of(labels, (0.9, 0.8))
    both = net_with().proposals(maps)
    area = int(both.masks[0].sum())
    assert len(both) == 2 and area < 300
    assert len(net_with(smallest_proposal=area).proposals(maps)) == 2
    left = net_with(smallest_proposal=area + 1).proposals(maps)
    assert torch.equal(left.masks, both.masks[1:]) and torch.equal(left.boxes, both.boxes[1:])
    assert torch.equal(left.scores, both.scores[1:])


def test_centres_past_the_limit_leave_their_pixels_to_the_hottest() -> None:
    labels = np.zeros(SIZE, np.uint8)
    tops = [(y, x) for y in (8, 40, 72) for x in (8, 40, 72, 104, 136)]
    for i, (y, x) in enumerate(tops, start=1):
        labels[y : y + 16, x : x + 16] = i
    heats = [0.5 + 0.02 * ((7 * i) % len(tops)) for i in range(len(tops))]
    maps = maps_of(labels, heats)
    assert len(net_with().proposals(maps)) == len(tops)
    proposals = net_with(centre_limit=4).proposals(maps)
    assert len(proposals) == 4
    for mask, i in zip(proposals.masks, np.argsort(heats)[::-1], strict=False):
        y, x = tops[i]
        assert mask[y + 4 : y + 12, x + 4 : x + 12].all()
    assert overlap(proposals.masks.any(dim=0), (labels > 0).astype(np.uint8), 1) > 0.9


def test_scores_are_the_mean_probability_of_the_upsampled_logits() -> None:
    logits = 4 * torch.randn(1, 1, 12, 20, generator=torch.Generator().manual_seed(0))
    still = torch.zeros(1, 2, 12, 20)
    proposals = net_with().proposals(DNetMaps(logits, torch.zeros_like(logits), still))
    fine = functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    probability = 1 / (1 + np.exp(-fine[0, 0].double().numpy()))
    assert torch.equal(proposals.masks[0], fine[0, 0] > 0)
    assert float(proposals.scores[0]) == pytest.approx(probability[probability > 0.5].mean())


def test_maps_of_two_frames_are_refused() -> None:
    maps = DNetMaps(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 8, 8))
    with pytest.raises(InputError, match="one frame, given 2"):
        net_with().proposals(maps)


def test_nothing_is_foreground_in_the_padding() -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[16:48, 0:40] = 1  # its left half lies in the padding
    labels[56:88, 100:140] = 2
    maps = maps_of(labels, (0.9, 0.8))
    whole = net_with().proposals(maps).masks
    inside = net_with().proposals(maps, padding=(20, 0, 0, 0)).masks
    assert len(whole) == len(inside) == 2
    assert not inside[:, :, :20].any()
    assert torch.equal(inside[:, :, 24:], whole[:, :, 24:])
    assert len(net_with().proposals(maps, padding=(40, 40, 52, 0))) == 1  # only the second is left
