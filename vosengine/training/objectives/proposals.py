"""Proposals as a poor detector would make them, drawn from the true masks."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...proposals import Proposals, boxes_of

MISSED = 0.4  # chance that an object is not proposed (ours)
FALSE = 2  # proposals of no object, each a moved copy of one


def draw_proposals(mask: torch.Tensor, count: int, generator: torch.Generator) -> Proposals:
    """One proposal for most objects of a mask [H, W], grown, shrunk or cut, and a few false
    ones; in random order."""
    found = []
    for each in range(1, 1 + count):
        own = mask == each
        if not own.any():
            continue
        if float(torch.rand((), generator=generator)) >= MISSED:
            found.append(_worn(own, generator))
        if len(found) < count + FALSE and float(torch.rand((), generator=generator)) < 0.5:
            shift = torch.randint(-60, 61, (2,), generator=generator).tolist()
            found.append(own.roll(shift, (0, 1)))
    masks = torch.stack(found) if found else mask.new_zeros(0, *mask.shape, dtype=torch.bool)
    masks = masks[masks.any(dim=2).any(dim=1)]
    order = torch.randperm(len(masks), generator=generator)
    scores = torch.rand(len(masks), generator=generator).sort(descending=True).values
    return Proposals(boxes_of(masks[order]), masks[order], scores.to(mask.device))


def _worn(own: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A mask [H, W] whose outline has moved a little; now and then a part of it is missing."""
    reach = int(torch.randint(0, 4, (), generator=generator))
    grows, cuts = (torch.rand(2, generator=generator) < 0.5).tolist()
    plane = own.float()[None, None]
    if grows:
        plane = functional.max_pool2d(plane, 2 * reach + 1, 1, reach)
    else:
        plane = -functional.max_pool2d(-plane, 2 * reach + 1, 1, reach)
    worn = plane[0, 0] > 0
    if cuts and worn.any():
        rows = worn.any(dim=1).nonzero().flatten()
        at = int(rows[int(torch.randint(len(rows), (), generator=generator))])
        part = worn.clone()
        part[at:] = False
        if 4 * part.sum() > worn.sum():
            return part
    return worn
