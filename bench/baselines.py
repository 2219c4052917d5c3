"""Other ways to compute what an op computes, as one would write them in torch without this library.

Every baseline takes the op's own arguments and returns what the op returns; the benchmark holds it
against the same reference before it times it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vosengine.kernels import read_memory

Baseline = Callable[..., Any]


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
    """correlate_frames (outside = "zero") by torch's unfold: every window spelled out."""
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
    """correlate_frames (outside = "zero") by one product of all pairs, then a gather of windows."""
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
    """For every cell the flat index of each cell of its window, and which of them do not exist."""
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


def grid_sample(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    strides: tuple[int, ...],
    planes: torch.Tensor | None = None,
    plane_stride: int = 1,
    size: int = 14,
    sampling: int = 2,
) -> torch.Tensor:
    """pool_regions (aligned, one image) by torch's grid_sample, then avg_pool2d, map by map.

    The samples of all regions are one tall picture where they share a map.
    """
    pooled = [
        _sample_bins(level, boxes, stride, size, sampling)
        for level, stride in zip(levels, strides, strict=True)
    ]
    if planes is not None:
        pooled.append(_sample_bins(planes[:, None], boxes, plane_stride, size, sampling))
    return torch.cat(pooled, dim=1)


def _sample_bins(
    maps: torch.Tensor, boxes: torch.Tensor, stride: int, size: int, sampling: int
) -> torch.Tensor:
    """[R, C, size, size] from [1, C, H, W], or from [R, C, H, W] one for each region."""
    count = size * sampling
    cells = torch.tensor([maps.shape[3], maps.shape[2]], device=boxes.device)
    steps = (torch.arange(count, device=boxes.device) + 0.5) / count
    start, extent = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    points = (start + extent * steps[:, None]) / stride  # [R, count, 2], cell 0 from 0 to 1
    inside = ((points >= -0.5) & (points <= cells + 0.5)).to(maps.dtype)
    x, y = (2 * points / cells - 1).unbind(dim=2)
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=3)
    if len(maps) == 1:
        grid = grid.flatten(0, 1)[None]
    samples = functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    if len(maps) == 1:
        samples = samples[0].unflatten(1, (-1, count)).movedim(1, 0)
    samples = samples * (inside[:, None, None, :, 0] * inside[:, None, :, None, 1])
    return functional.avg_pool2d(samples, sampling)


def _by_length(
    attend: Baseline,
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    length: torch.Tensor | None,
) -> torch.Tensor:
    """All groups in one batch, or each cut to its length: 2.7 times as fast as a mask (CPU)."""
    queries = query_key.expand(len(memory_key), -1, -1)
    if length is None:
        return attend(queries, memory_key, memory_value)
    groups = zip(queries, memory_key, memory_value, length.tolist(), strict=True)
    return torch.stack(
        [attend(query, key[:end], value[..., :end, :]) for query, key, value, end in groups]
    )


def sdpa(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    length: torch.Tensor | None = None,
) -> torch.Tensor:
    """read_memory by torch's scaled_dot_product_attention, sets joined to one wide value."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if value.ndim > key.ndim:
            wide = attend(query, key, value.transpose(-3, -2).flatten(-2))
            return wide.unflatten(-1, (value.shape[-3], -1)).transpose(-3, -2).contiguous()
        batched = (x if x.ndim == 3 else x[None] for x in (query, key, value))
        out = functional.scaled_dot_product_attention(*batched, scale=scale)
        return out.view(*query.shape[:-1], value.shape[-1])

    return _by_length(attend, query_key, memory_key, memory_value, length)


def matmul(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    length: torch.Tensor | None = None,
) -> torch.Tensor:
    """read_memory by two products around a softmax, the scores stored as a whole."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        weights = (query * scale @ key.mT).softmax(dim=-1)
        return (weights.unsqueeze(-3) if value.ndim > key.ndim else weights) @ value

    return _by_length(attend, query_key, memory_key, memory_value, length)


def separate(
    query_key: torch.Tensor, memory_key: torch.Tensor, memory_value: torch.Tensor, **given: Any
) -> torch.Tensor:
    """read_memory by this library's own op, one call per set of values."""
    if memory_value.ndim == 3:
        return read_memory(query_key, memory_key, memory_value, **given)
    sets = [read_memory(query_key, memory_key, value, **given) for value in memory_value.unbind(1)]
    return torch.stack(sets, dim=1)


def interpolate(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    size: tuple[int, int],
    region: tuple[float, float, float, float],
    probabilities: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """finish_masks where the region is a crop of a x4 upsampling, by torch's interpolate.

    The label is found by comparing row after row: torch's argmax over the first axis alone takes
    longer than all of this.
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


def _find_centres(
    heatmap: torch.Tensor, threshold: float, window: int, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[H, W] -> (y, x) [K, 2] and heat [K] of the highest cells that max-pooling leaves alone, so
    that every cell of a plateau is a centre."""
    heat = functional.threshold(heatmap, threshold, -1)
    highest = functional.max_pool2d(heat[None], window, stride=1, padding=window // 2)[0]
    heat = heat.masked_fill(heat != highest, -1).flatten()
    heat, cells = heat.topk(min(limit, len(heat)))
    heat, cells = heat[heat > threshold], cells[heat > threshold]
    return torch.stack((cells // heatmap.shape[1], cells % heatmap.shape[1]), dim=1), heat


def _targets(offset: torch.Tensor) -> torch.Tensor:
    """[2, H, W]: the (y, x) that every pixel points to."""
    y, x = (torch.arange(size, device=offset.device).float() for size in offset.shape[1:])
    return torch.stack(torch.meshgrid(y, x, indexing="ij")) + offset


def distance_matrix(offset: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """[H, W] index of the nearest centre, as Panoptic-DeepLab's post-processing finds it."""
    targets = _targets(offset).flatten(1).T  # [H * W, 2]
    distances = torch.norm(centres[:, None] - targets, dim=-1)  # [K, H * W]
    return distances.argmin(dim=0).view(offset.shape[1:])


def running_minimum(offset: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """[H, W] index of the nearest centre, one centre after the other and nothing else stored."""
    targets = _targets(offset)
    least = torch.full_like(targets[0], torch.inf)
    nearest = torch.zeros_like(targets[0], dtype=torch.int64)
    for index, centre in enumerate(centres):
        distance = (targets - centre[:, None, None]).square_().sum(dim=0)
        nearest.masked_fill_(distance < least, index)
        torch.minimum(least, distance, out=least)
    return nearest


def max_pooling(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    nearest: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """group_centres by torch's max_pool2d and topk, then `nearest`."""
    labels = foreground.to(torch.uint8)
    centres = torch.full((len(heatmap), limit, 2), -1, dtype=torch.int32, device=heatmap.device)
    scores = heatmap.new_zeros(len(heatmap), limit)
    for b, image in enumerate(heatmap):
        found, heat = _find_centres(image, threshold, window, limit)
        if len(found):
            labels[b] *= nearest(offset[b], found).add_(1).to(torch.uint8)
            centres[b, : len(found)], scores[b, : len(found)] = found.int(), heat
    return labels, centres, scores


def autograd(
    features: torch.Tensor,
    bands: torch.Tensor,
    targets: torch.Tensor,
    sample_weight: torch.Tensor,
    kernel: torch.Tensor,
    projection: torch.Tensor | None = None,
    *,
    iterations: Sequence[int] = (10,),
    ridge: tuple[float, float] = (1e-4, 1e-2),
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """fit_target by torch's convolutions, the products with J' by autograd and those with J by
    differentiating them once more, as general Gauss-Newton optimisers do.

    Autograd cannot keep what inference mode made: there the arguments are copied first.
    """
    with torch.inference_mode(False), torch.enable_grad():
        given = (features, bands, targets, sample_weight, kernel, projection)
        copies = [x.clone() if x is not None and x.is_inference() else x for x in given]
        problem = _TargetByAutograd(*copies[:4])
        weights = [x.detach() for x in copies[4:] if x is not None]
        for count in iterations:
            weights = problem.step(weights, count, ridge[::-1])
    return weights[0], weights[1] if projection is not None else None


Weights = list[torch.Tensor]


class _TargetByAutograd:
    def __init__(
        self,
        features: torch.Tensor,
        bands: torch.Tensor,
        targets: torch.Tensor,
        sample_weight: torch.Tensor,
    ) -> None:
        self.tracks, self.samples = features.shape[:2]
        self.features = features.transpose(0, 1).flatten(1, 2)  # tracks as groups of channels
        self.bands, self.targets = bands, targets
        self.sample_weight = sample_weight[:, :, None, None]

    def scores(self, weights: Weights) -> torch.Tensor:
        maps = self.features
        if len(weights) > 1:
            maps = functional.conv2d(
                maps, weights[1].flatten(0, 1)[..., None, None], groups=self.tracks
            )
        scores = functional.conv2d(maps, weights[0], padding=1, groups=self.tracks)
        return scores.transpose(0, 1)

    def weigh(self, scores: torch.Tensor) -> torch.Tensor:
        windows = functional.unfold(scores.flatten(0, 1)[:, None], 3, padding=1)
        return (self.bands.flatten(3) * windows.view_as(self.bands.flatten(3))).sum(2)

    def step(self, weights: Weights, iterations: int, ridge: tuple[float, float]) -> Weights:
        weights = [x.requires_grad_() for x in weights]
        scores = self.scores(weights)
        change = torch.zeros_like(scores, requires_grad=True)
        adjoint = torch.autograd.grad(scores, weights, change, create_graph=True)

        def normal(error: torch.Tensor, step: Weights) -> Weights:
            error = (error.view_as(scores) * self.sample_weight).detach()
            data = torch.autograd.grad(scores, weights, error, retain_graph=True)
            return [g + r * d for g, r, d in zip(data, ridge, step, strict=False)]

        error = self.weigh(scores.detach()).view_as(scores) - self.targets
        residual = [-x for x in normal(error, [x.detach() for x in weights])]
        direction, solution, before, rho_before = None, None, residual, None
        for _ in range(iterations):
            scaled = [x / r for x, r in zip(residual, ridge, strict=False)]
            rho = _dot(residual, scaled)
            if direction is None:
                direction = scaled
            else:
                beta = ((rho - _dot(before, scaled)) / rho_before).clamp(min=0)
                direction = _add(scaled, beta, direction)
            moved = torch.autograd.grad(adjoint, change, direction, retain_graph=True)[0]
            curved = normal(self.weigh(moved), direction)
            alpha = rho / _dot(direction, curved)
            solution = _add(solution or [torch.zeros_like(x) for x in direction], alpha, direction)
            before, residual, rho_before = residual, _add(residual, -alpha, curved), rho
        return [(x + d).detach() for x, d in zip(weights, solution or [], strict=True)]


def _dot(a: Weights, b: Weights) -> torch.Tensor:
    """[K]"""
    return torch.stack([(x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)


def _add(a: Weights, factor: torch.Tensor, b: Weights) -> Weights:
    return [x + factor.view(-1, *(1,) * (y.ndim - 1)) * y for x, y in zip(a, b, strict=True)]


def pair_by_pair(
    template: torch.Tensor, proposal: torch.Tensor, *, alpha: float = 100.0
) -> tuple[torch.Tensor, None]:
    """align_object (score = "mean") one template and one proposal at a time."""
    scores = template.new_empty(len(template), len(proposal))
    for i, one in enumerate(template):
        for j, other in enumerate(proposal):
            cosines = functional.normalize(one, dim=1) @ functional.normalize(other, dim=1).mT
            moved = (alpha * cosines).softmax(dim=1) @ other
            scores[i, j] = functional.cosine_similarity(one, moved, dim=1).mean()
    return scores, None


def in_numpy(
    similarity: torch.Tensor, *, steps: int = 40, inner: int = 5, rate: float = 0.1
) -> torch.Tensor:
    """match_proposals (answer = "final") in numpy, whose calls on small arrays cost less."""
    rows, columns = similarity.shape
    cost = -np.pad(similarity.cpu().numpy(), ((0, 0), (0, max(0, rows + 1 - columns))))
    kept = np.where(np.arange(rows)[:, None] == cost.argmin(0), cost, cost.max())
    x = (np.arange(cost.shape[1]) == kept.argmin(1)[:, None]).astype(cost.dtype)
    negative, excess = np.zeros_like(x), np.zeros_like(x[0])
    for _ in range(steps):
        x = x - rate * cost
        for _ in range(inner):
            x += negative
            negative = np.minimum(x, 0)
            x = x - negative
            before, excess = excess, np.maximum(excess + (x.sum(0) - 1) / rows, 0)
            x += before - excess
            x -= (x.sum(1, keepdims=True) - 1) / cost.shape[1]
    return torch.from_numpy(x[:, :columns]).to(similarity.device)


BASELINES: dict[str, dict[str, Baseline]] = {
    "correlate_frames": {"unfold": unfold, "dense": dense},
    "deform_conv": {"columns": columns},
    "pool_regions": {"grid_sample": grid_sample},
    "read_memory": {"sdpa": sdpa, "matmul": matmul, "separate": separate},
    "finish_masks": {"interpolate": interpolate},
    "group_centres": {
        "panoptic_deeplab": partial(max_pooling, nearest=distance_matrix),
        "running_minimum": partial(max_pooling, nearest=running_minimum),
    },
    "fit_target": {"autograd": autograd},
    "align_object": {"pair_by_pair": pair_by_pair},
    "match_proposals": {"in_numpy": in_numpy},
}
