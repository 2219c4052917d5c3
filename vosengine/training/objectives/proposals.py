"""Simulated detector proposals, drawn from the true masks."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...proposals import Proposals, boxes_of

MISSED = 0.4  # probability that an object has no proposal (ours)
FALSE = 2  # maximum number of extra false proposals, shifted copies of objects


def draw_proposals(mask: torch.Tensor, count: int, generator: torch.Generator) -> Proposals:
    """Proposals for a mask [H, W] with ids 1..count: a corrupted mask of most objects, and false
    ones; in random order."""
    proposed = []
    for object_id in range(1, 1 + count):
        own = mask == object_id
        if not own.any():
            continue
        if float(torch.rand((), generator=generator)) >= MISSED:
            proposed.append(_corrupted(own, generator))
        if len(proposed) < count + FALSE and float(torch.rand((), generator=generator)) < 0.5:
            shift = torch.randint(-60, 61, (2,), generator=generator).tolist()
            proposed.append(own.roll(shift, (0, 1)))
    masks = torch.stack(proposed) if proposed else mask.new_zeros(0, *mask.shape, dtype=torch.bool)
    masks = masks[masks.any(dim=2).any(dim=1)]
    order = torch.randperm(len(masks), generator=generator)
    scores = torch.rand(len(masks), generator=generator).sort(descending=True).values
    return Proposals(boxes_of(masks[order]), masks[order], scores.to(mask.device))


def _corrupted(own: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Dilate or erode a mask [H, W] by up to 3 pixels; with probability 1/2 cut off its lower
    part, unless less than a quarter would be left."""
    reach = int(torch.randint(0, 4, (), generator=generator))
    grows, cuts = (torch.rand(2, generator=generator) < 0.5).tolist()
    sign = 1 if grows else -1
    worn = sign * functional.max_pool2d(sign * own.float()[None], 2 * reach + 1, 1, reach)[0] > 0
    if cuts and worn.any():
        rows = worn.any(dim=1).nonzero().flatten()
        at = int(rows[int(torch.randint(len(rows), (), generator=generator))])
        part = worn.clone()
        part[at:] = False
        if 4 * part.sum() > worn.sum():
            return part
    return worn
