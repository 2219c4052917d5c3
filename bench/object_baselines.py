"""Baselines of the ops that find, compare and follow objects; see baselines.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional


def map_by_map(pool: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return pool_regions of one image by pool(maps, boxes, stride, size, sampling).

    pool  given maps [1, C, H, W], or [R, 1, H, W] with one per region; returns [R, C, size, size]
    """

    def call(
        levels: tuple[torch.Tensor, ...],
        boxes: torch.Tensor,
        *,
        strides: tuple[int, ...],
        planes: torch.Tensor | None = None,
        plane_stride: int = 1,
        size: int = 14,
        sampling: int = 2,
        **options: bool,
    ) -> torch.Tensor:
        maps = [*zip(levels, strides, strict=True)]
        if planes is not None:
            maps.append((planes[:, None], plane_stride))
        pooled = [pool(each, boxes, stride, size, sampling, **options) for each, stride in maps]
        return torch.cat(pooled, dim=1)

    return call


@map_by_map
def grid_sample(
    maps: torch.Tensor, boxes: torch.Tensor, stride: int, size: int, sampling: int
) -> torch.Tensor:
    """pool_regions (aligned, one image) by torch's grid_sample, then avg_pool2d.

    The samples of all regions that share a map are one tall grid.
    """
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


def _find_centres(
    heatmap: torch.Tensor, threshold: float, window: int, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[H, W] -> (y, x) [K, 2] and heat [K] of the highest cells that max pooling leaves unchanged;
    every cell of a plateau is a centre."""
    heat = functional.threshold(heatmap, threshold, -1)
    highest = functional.max_pool2d(heat[None], window, stride=1, padding=window // 2)[0]
    heat = heat.masked_fill(heat != highest, -1).flatten()
    heat, cells = heat.topk(min(limit, len(heat)))
    heat, cells = heat[heat > threshold], cells[heat > threshold]
    return torch.stack((cells // heatmap.shape[1], cells % heatmap.shape[1]), dim=1), heat


def _targets(offset: torch.Tensor) -> torch.Tensor:
    """Return [2, H, W]: the position (y, x) that every pixel points to."""
    y, x = (torch.arange(size, device=offset.device).float() for size in offset.shape[1:])
    return torch.stack(torch.meshgrid(y, x, indexing="ij")) + offset


def distance_matrix(offset: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest centre [H, W], as Panoptic-DeepLab's post-processing does."""
    targets = _targets(offset).flatten(1).T  # [H * W, 2]
    distances = torch.norm(centres[:, None] - targets, dim=-1)  # [K, H * W]
    return distances.argmin(dim=0).view(offset.shape[1:])


def running_minimum(offset: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest centre [H, W] by a loop over centres, without a distance
    matrix."""
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
        peaks, heat = _find_centres(image, threshold, window, limit)
        if len(peaks):
            labels[b] *= nearest(offset[b], peaks).add_(1).to(torch.uint8)
            centres[b, : len(peaks)], scores[b, : len(peaks)] = peaks.int(), heat
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
    """fit_target by torch's convolutions, products with J' by autograd and those with J by double
    backward, as in general Gauss-Newton optimisers.

    Inference tensors cannot be saved for backward, so the arguments are copied first.
    """
    with torch.inference_mode(False), torch.enable_grad():
        arguments = (features, bands, targets, sample_weight, kernel, projection)
        copies = [x.clone() if x is not None and x.is_inference() else x for x in arguments]
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
        self.features = features.transpose(0, 1).flatten(1, 2)  # tracks as groups of a convolution
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
    """match_proposals (answer = "final") in NumPy, whose calls on small arrays are cheaper."""
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
