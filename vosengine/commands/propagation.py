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
STRIDE = 8  # of the cells; coarser maps are resized to it
MULTIPLE = 16  # sides are padded to it, for the coarsest map
RECENT = 5  # predictions in the memory, beside the first frame
WINDOW = 12  # cells up, down, left and right
TOP_K = 10  # positions that a cell reads, of all frames together
TEMPERATURE = 0.07  # divides cosine similarities
TILE = 16  # side of the tiles of cells that are computed together


class Features:
    """The backbone's features at strides 8 and 16, normalised and concatenated at stride 8.

    One instance serves many clips.

    Raises  WeightsError if the shipped weights are missing or damaged.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        network = EfficientNetLite(BACKBONE)
        weights = read_state_dict(backbone_file(BACKBONE))
        used = {name: weights[name] for name in state_of(network)}  # the file has stride 32 too
        network.load_state_dict(used, strict=False)
        self._network = prepare_network(network.eval(), device, torch.float32)

    @torch.inference_mode()
    def __call__(self, frame: Frame, geometry: Geometry) -> torch.Tensor:
        """[h, w, C] float32 of length 1 in every cell, for a frame [H, W, 3] uint8 RGB."""
        image = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device)
        image = prepare(image, geometry, LITE_MEAN, LITE_STD, torch.float32)
        image = image[None].contiguous(memory_format=torch.channels_last)
        pyramid = self._network(image)
        fine, coarse = (functional.normalize(x, dim=1) for x in (pyramid.r3, pyramid.r4))
        # Equal weights: with six times the weight on the coarse map, as in EfficientNetLite, J of
        # three clips drops by .06.
        coarse = functional.normalize(
            functional.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False),
            dim=1,
        )
        cells = torch.cat((fine, coarse), dim=1)[0] / math.sqrt(2)
        return cells.permute(1, 2, 0).contiguous()


class PropagatedMask:
    """The first mask propagated by feature similarity ("label propagation").

    Each cell of a new frame takes the mean of the masks of its TOP_K most similar cells, within
    WINDOW cells, in the first frame and the last RECENT ones, weighted by a softmax of the cosine
    similarities over TEMPERATURE. Masks are soft: in the first frame the share of each cell that an
    object covers, later the prediction. A pixel gets the object with the largest value, or the
    background if that has more.

    features  a `Features`, or a callable with the same signature
    frame     first frame, [H, W, 3] uint8 RGB
    mask      its object ids, [H, W] uint8
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
        """Labels of the next frame, [H, W] uint8."""
        query = self._features(frame, self._geometry)
        keys, shares = zip(self._first, *self._recent, strict=True)
        soft = propagate(query, torch.stack(keys), torch.stack(shares))
        self._recent.append((query, soft))
        planes = functional.interpolate(
            soft.permute(2, 0, 1)[None], scale_factor=STRIDE, mode="bilinear", align_corners=False
        )[0]
        planes = _resize(crop(planes, self._geometry), self._geometry.frame)
        background = 1 - planes.sum(dim=0, keepdim=True)
        greatest = torch.cat((background, planes)).max(dim=0).indices
        labels: Labels = self._ids[greatest.cpu().numpy()]
        return labels


def propagate(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    window: int = WINDOW,
    top_k: int = TOP_K,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Values [h, w, V] for the cells of a query [h, w, C], from keys [T, h, w, C] and values
    [T, h, w, V].

    Each is the mean of the values with the `top_k` largest dot products within `window` cells, over
    all frames, weighted by their softmax over `temperature`. Computed in tiles, so that few
    products outside the window are needed.
    """
    height, width, channels = query.shape
    result = values.new_empty(height, width, values.shape[3])
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
        result[rows, columns] = mean.view(*far.shape[:2], -1)
    return result


def _reach(
    start: int, side: int, window: int, device: torch.device
) -> tuple[slice, slice, torch.Tensor]:
    """Along one side: slices of the tile's cells and of the cells near any of them, and a mask
    [cells, near] that is True outside the window."""
    stop = min(start + TILE, side)
    low, high = max(0, start - window), min(side, stop + window)
    cells = torch.arange(start, stop, device=device)
    far = (cells[:, None] - torch.arange(low, high, device=device)).abs() > window
    return slice(start, stop), slice(low, high), far


def _resize(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize [N, H, W]; bilinear, antialiased when shrinking."""
    return functional.interpolate(
        planes[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]
