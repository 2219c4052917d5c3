"""D-Net outputs computed from exact masks, and identity measures of a tracker on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from vosengine.kernels import group_centres
from vosengine.proposals import Proposals, boxes_of
from vosengine.types import Result


class ExactDiscovery:
    """ProposalSource with the saliency, centres and offsets of a perfect D-Net.

    masks     [T, H, W] object ids of every frame
    smallest  minimum pixels of a proposed object
    """

    def __init__(self, masks: np.ndarray, smallest: int = 40) -> None:
        self.masks = masks
        self.smallest = smallest

    def __call__(self, frame: torch.Tensor, frame_index: int) -> Proposals:
        heat, offset, foreground = exact_maps(self.masks[frame_index])
        labels, _, _ = group_centres(heat[None], offset[None], foreground[None])
        areas = torch.bincount(labels.flatten(), minlength=2)
        kept = 1 + (areas[1:] >= self.smallest).nonzero()[:, 0]
        masks = labels == kept[:, None, None]
        return Proposals(boxes_of(masks), masks, torch.ones(len(kept)))


def exact_maps(mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return heat map [H, W] (Gaussians of 10 pixels, as in training), offset [2, H, W] in pixels
    and foreground [H, W] of one mask."""
    height, width = mask.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    heat, offset = np.zeros((height, width), np.float32), np.zeros((2, height, width), np.float32)
    for object_id in np.unique(mask[mask > 0]):
        there = mask == object_id
        centre_y, centre_x = y[there].mean().round(), x[there].mean().round()
        squared = (y - centre_y) ** 2 + (x - centre_x) ** 2
        heat = np.maximum(heat, np.exp(-squared / (2 * 10**2)))
        offset[0][there], offset[1][there] = (centre_y - y)[there], (centre_x - x)[there]
    return torch.from_numpy(heat), torch.from_numpy(offset), torch.from_numpy(mask > 0)


@dataclass
class Identities:
    """CLEAR MOT counts of a tracker on one clip.

    switches   an object is found under another id than before
    fragments  an object is found again after it was visible and not found
    overlaps   IoU of every found object and frame (IoU of 0.5 or more)
    shown      number of objects and frames to be found, of 40 pixels or more
    """

    switches: int
    fragments: int
    overlaps: list[float]
    shown: int


def identities(results: list[Result], masks: np.ndarray) -> Identities:
    counts = Identities(0, 0, [], 0)
    known: dict[int, int] = {}
    lost: set[int] = set()
    for result, mask in zip(results, masks, strict=True):
        labels = result.numpy()
        objects = [i for i in np.unique(mask) if i > 0 and (mask == i).sum() >= 40]
        tracks = [i for i in np.unique(labels) if i > 0]
        counts.shown += len(objects)
        overlap = np.zeros((len(objects), len(tracks)))
        for row, object_id in enumerate(objects):
            for column, track in enumerate(tracks):
                a, b = mask == object_id, labels == track
                overlap[row, column] = (a & b).sum() / (a | b).sum()
        pairs = {
            objects[row]: (int(tracks[column]), float(overlap[row, column]))
            for row, column in zip(*linear_sum_assignment(-overlap), strict=True)
            if overlap[row, column] >= 0.5
        }
        for object_id in objects:
            if object_id not in pairs:
                lost.add(object_id)
                continue
            track, shared = pairs[object_id]
            counts.overlaps.append(shared)
            counts.switches += known.get(object_id, track) != track
            counts.fragments += object_id in lost and object_id in known
            lost.discard(object_id)
            known[object_id] = track
    return counts
