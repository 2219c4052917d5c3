"""Baseline: label propagation with the features of a pretrained backbone, without training."""

from __future__ import annotations

import math
from collections import deque
from itertools import product

import numpy as np
import torch
from torch.nn import functional

from ..config import LITE_MEAN, LITE_STD
from ..evaluation import Frame, Labels
from ..frames import crop, pad, prepare
from ..models.efficientnet import EfficientNetLite
from ..runtime.network import prepare_network
from ..types import Geometry
from ..zoo.checkpoints import read_state_dict
from ..zoo.weights import backbone_file, state_of

BACKBONE = "efficientnet_lite0"
SIZE = 256  # short side that the backbone sees
STRIDE = 8  # of the cells, coarser maps brought there
MULTIPLE = 16  # what the coarsest map wants of a side
RECENT = 5  # predictions in the memory, beside the first frame
WINDOW = 12  # cells up, down, left and right
TOP_K = 10  # positions that a cell reads, of all frames together
TEMPERATURE = 0.07  # what cosines are divided by
TILE = 16  # cells a side that are computed together


class Features:
    """The backbone's features at strides 8 and 16, joined at stride 8, both of the same length in
    every cell; made once, for many clips.

    Raises  WeightsError where the shipped weights are missing or damaged.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        network = EfficientNetLite(BACKBONE)
        found = read_state_dict(backbone_file(BACKBONE))
        wanted = {name: found[name] for name in state_of(network)}  # the file goes on to stride 32
        network.load_state_dict(wanted, strict=False)
        self._network = prepare_network(network.eval(), device, torch.float32)

    @torch.inference_mode()
    def __call__(self, frame: Frame, geometry: Geometry) -> torch.Tensor:
        """[h, w, C] float32 of length 1 in every cell, for a frame [H, W, 3] uint8 RGB."""
        image = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device)
        image = prepare(image, geometry, LITE_MEAN, LITE_STD, torch.float32)
        image = image[None].contiguous(memory_format=torch.channels_last)
        pyramid = self._network(image)
        fine, coarse = (functional.normalize(x, dim=1) for x in (pyramid.r3, pyramid.r4))
        # Both count alike: with the coarse one as EfficientNetLite joins them, at six times the
        # weight, masks of three clips lose .06 of J.
        coarse = functional.normalize(
            functional.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False),
            dim=1,
        )
        cells = torch.cat((fine, coarse), dim=1)[0] / math.sqrt(2)
        return cells.permute(1, 2, 0).contiguous()


class PropagatedMask:
    """The first mask carried on by likeness of features ("label propagation").

    A cell of a new frame takes the mean of the masks of its TOP_K most similar cells, of those at
    most WINDOW away in the first frame and the last RECENT ones, weighted by a softmax of their
    cosines over TEMPERATURE. Masks are soft: the first one's share of every cell, then what was
    predicted. A pixel shows its greatest object, where that is more than what the objects leave to
    the background.

    features  those of `Features`, or others with the same call
    frame     [H, W, 3] uint8 RGB, the first
    mask      [H, W] uint8, its object ids
    """

    def __init__(self, features: Features, frame: Frame, mask: Labels) -> None:
        self._features = features
        height, width = mask.shape
        self._geometry = Geometry.fit((height, width), size=SIZE, multiple=MULTIPLE)
        self._ids = np.unique(np.append(mask, 0)).astype(np.uint8)  # the background first
        planes = torch.from_numpy(np.stack([mask == i for i in self._ids[1:]])).float()
        planes = pad(_resize(planes, self._geometry.resized), self._geometry)
        shares = functional.avg_pool2d(planes, STRIDE).permute(1, 2, 0)
        shares = shares.to(features.device).contiguous()
        self._first = features(frame, self._geometry), shares
        self._recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=RECENT)

    @torch.inference_mode()
    def step(self, frame: Frame) -> Labels:
        """The answer for the next frame."""
        query = self._features(frame, self._geometry)
        keys, shares = zip(self._first, *self._recent, strict=True)
        found = carry(query, torch.stack(keys), torch.stack(shares))
        self._recent.append((query, found))
        planes = functional.interpolate(
            found.permute(2, 0, 1)[None], scale_factor=STRIDE, mode="bilinear", align_corners=False
        )[0]
        planes = _resize(crop(planes, self._geometry), self._geometry.frame)
        background = 1 - planes.sum(dim=0, keepdim=True)
        greatest = torch.cat((background, planes)).max(dim=0).indices
        labels: Labels = self._ids[greatest.cpu().numpy()]
        return labels


def carry(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    window: int = WINDOW,
    top_k: int = TOP_K,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Values [h, w, V] for the cells of a query [h, w, C], from keys [T, h, w, C] and values
    [T, h, w, V]: the mean over the `top_k` greatest dot products within `window` cells, all frames
    together, weighted by their softmax over `temperature`. In tiles, which read little that is too
    far away."""
    height, width, channels = query.shape
    carried = values.new_empty(height, width, values.shape[3])
    for top, left in product(range(0, height, TILE), range(0, width, TILE)):
        rows, near_rows, far_rows = _reach(top, height, window, query.device)
        columns, near_columns, far_columns = _reach(left, width, window, query.device)
        far = far_rows[:, None, :, None] | far_columns[None, :, None, :]
        cells = query[rows, columns].reshape(-1, channels)
        near = keys[:, near_rows, near_columns].reshape(-1, channels)
        scores = (cells @ near.T).view(*far.shape[:2], len(keys), *far.shape[2:])
        scores.masked_fill_(far[:, :, None], -math.inf)
        scores = scores.view(len(cells), -1)
        best, places = scores.topk(min(top_k, scores.shape[1]), dim=1, sorted=False)
        weights = (best / temperature).softmax(dim=1)
        read = values[:, near_rows, near_columns].reshape(-1, values.shape[3])[places]
        mean = (weights[:, :, None] * read).sum(dim=1)
        carried[rows, columns] = mean.view(*far.shape[:2], -1)
    return carried


def _reach(
    start: int, side: int, window: int, device: torch.device
) -> tuple[slice, slice, torch.Tensor]:
    """Along one side: the tile's cells, those near any of them, and [cells, near] what is too far
    for which."""
    stop = min(start + TILE, side)
    low, high = max(0, start - window), min(side, stop + window)
    cells = torch.arange(start, stop, device=device)
    far = (cells[:, None] - torch.arange(low, high, device=device)).abs() > window
    return slice(start, stop), slice(low, high), far


def _resize(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[N, H, W] at another size; bilinear, antialiased where it shrinks."""
    return functional.interpolate(
        planes[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]
