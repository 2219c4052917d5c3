"""Baselines of the ops that work on frames and maps; see baselines.py."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional


def _soft_argmax(cosines: torch.Tensor, scores: torch.Tensor, radius: int) -> torch.Tensor:
    """[B, side * side, h, w] -> [B, 3, h, w]: mean displacement and maximum."""
    side = 2 * radius + 1
    weights = scores.softmax(dim=1).unflatten(1, (side, side))
    steps = torch.arange(-radius, radius + 1, device=scores.device, dtype=scores.dtype)
    d_x = torch.einsum("bvuhw,u->bhw", weights, steps)
    d_y = torch.einsum("bvuhw,v->bhw", weights, steps)
    return torch.stack((d_x, d_y, cosines.amax(dim=1)), dim=1)


def unfold(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float = 20.0,
) -> torch.Tensor:
    """correlate_frames (outside = "zero") by torch's unfold: every window is materialised."""
    side = 2 * radius + 1
    query, previous = functional.normalize(query, dim=1), functional.normalize(previous, dim=1)
    windows = functional.unfold(previous, side, padding=radius).unflatten(1, (-1, side * side))
    cosines = torch.einsum("bcn,bcun->bun", query.flatten(2), windows)
    cosines = cosines.unflatten(2, query.shape[2:])
    return _soft_argmax(cosines, temperature * cosines, radius)


def dense(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float = 20.0,
) -> torch.Tensor:
    """correlate_frames (outside = "zero") by one matrix product of all pairs, then a gather."""
    height, width = query.shape[2:]
    query, previous = functional.normalize(query, dim=1), functional.normalize(previous, dim=1)
    pairs = torch.bmm(query.flatten(2).mT, previous.flatten(2))  # [B, h * w, h * w]
    index, beyond = _windows(height, width, radius, query.device)
    cosines = pairs.gather(2, index.expand(len(query), -1, -1)).masked_fill_(beyond, 0)
    cosines = cosines.mT.unflatten(2, (height, width))
    return _soft_argmax(cosines, temperature * cosines, radius)


@cache
def _windows(
    height: int, width: int, radius: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for every cell, flat indices of its window's cells, and a mask of those outside."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    steps = torch.arange(-radius, radius + 1, device=device)
    rows, columns = y[:, None] + steps, x[:, None] + steps  # [h, side], [w, side]
    index = rows.clamp(0, height - 1)[:, None, :, None] * width
    index = index + columns.clamp(0, width - 1)[None, :, None, :]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    inside = inside & ((columns >= 0) & (columns < width))[None, :, None, :]
    return index.reshape(height * width, -1), ~inside.reshape(height * width, -1)


def columns(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    padding: int = 0,
) -> torch.Tensor:
    """deform_conv (v1, stride 1, one group) by one grid_sample of all taps, then one product."""
    (batch, channels, height, width), (taps_y, taps_x) = x.shape, weight.shape[2:]
    out_height, out_width = offset.shape[2:]
    taps = taps_y * taps_x
    offset_groups = offset.shape[1] // (2 * taps)
    shift = offset.view(batch * offset_groups, taps, 2, out_height, out_width)
    steps = [torch.arange(n, dtype=x.dtype, device=x.device) for n in (out_height, out_width)]
    tap = torch.arange(taps, device=x.device)
    rows = steps[0] - padding + (tap // taps_x)[:, None]
    lines = steps[1] - padding + (tap % taps_x)[:, None]
    y, lines = shift[:, :, 0] + rows[:, :, None], shift[:, :, 1] + lines[:, None]
    grid = torch.stack(((2 * lines + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    sampled = functional.grid_sample(
        x.reshape(batch * offset_groups, channels // offset_groups, height, width),
        grid.view(batch * offset_groups, taps * out_height, out_width, 2),
        align_corners=False,
    )
    out = weight.flatten(1) @ sampled.view(batch, channels * taps, out_height * out_width)
    out = out.view(batch, -1, out_height, out_width)
    return out if bias is None else out.add_(bias[:, None, None])


def interpolate(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    size: tuple[int, int],
    region: tuple[float, float, float, float],
    probabilities: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """finish_masks for a region that is a crop of a x4 upsampling, by torch's interpolate.

    Labels are computed by comparing row after row: torch's argmax over the first axis alone takes
    longer than this whole baseline.
    """
    top, left = round(4 * region[0]), round(4 * region[1])
    fine = functional.interpolate(logits[None], scale_factor=4, mode="bilinear")[0]
    fine = fine[:, top : top + size[0], left : left + size[1]].clamp(-16.1, 16.1)
    odds = fine.exp()
    background = 1 / ((1 + odds).prod(dim=0) - 1)
    best, labels = background, torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for row, object_id in zip(odds, ids, strict=True):
        labels = torch.where(row > best, object_id, labels)
        best = torch.maximum(best, row)
    if not probabilities:
        return labels, None
    stacked = torch.cat((background[None], odds))
    return labels, stacked / stacked.sum(dim=0)
