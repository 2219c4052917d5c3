"""Independent float64 implementation of DMN-AOA, step by step, for the tests.

Follows the paper's sections 3.1 to 3.4 (equations 1 to 3) and DMM-Net's matching layer on a flat
dict of tensors under vosengine's state-dict names; nothing of vosengine is imported. Letters: N
objects, M proposals, T memory frames, p the side of a pooled region, h x w the stride-16 grid.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
Levels = dict[int, Tensor]  # [C, H / stride, W / stride] by stage: 2, 3, 4
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, of edges
STRIDES = {2: 4, 3: 8, 4: 16}


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Convolve one map [C, H, W]; every convolution of the network pads by half of its size."""
    weight = w[f"{name}.weight"]
    pad = weight.shape[-1] // 2
    return functional.conv2d(x[None], weight, w.get(f"{name}.bias"), stride, pad)[0]


def batch_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (w[f"{name}.{part}"][:, None, None] for part in parts)
    return gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta


def group_norm(w: Weights, name: str, x: Tensor, groups: int) -> Tensor:
    parts = [
        (part - part.mean()) / torch.sqrt(part.var(unbiased=False) + 1e-5)
        for part in x.chunk(groups)
    ]
    gamma, beta = (w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return gamma * torch.cat(parts) + beta


def residual(w: Weights, name: str, x: Tensor, stride: int) -> Tensor:
    """A block of a ResNet: two convolutions, or three with the stride on the second."""
    strides = (1, stride, 1) if f"{name}.conv3.weight" in w else (stride, 1)
    y = x
    for i, step in enumerate(strides, start=1):
        y = batch_norm(w, f"{name}.bn{i}", conv(w, f"{name}.conv{i}", y, step))
        if i < len(strides):
            y = torch.relu(y)
    if f"{name}.downsample.0.weight" in w:
        x = batch_norm(w, f"{name}.downsample.1", conv(w, f"{name}.downsample.0", x, stride))
    return torch.relu(x + y)


def base_features(w: Weights, frame: Tensor, groups: int) -> Levels:
    """B2, B3, B4 of a frame [3, H, W]: res2 to res4, each through a bottleneck (section 3.1)."""
    net = "base.backbone"
    x = torch.relu(batch_norm(w, f"{net}.bn1", conv(w, f"{net}.conv1", frame, 2)))
    x = functional.max_pool2d(x[None], 3, 2, 1)[0]
    levels = {}
    for layer in (1, 2, 3):
        block = 0
        while f"{net}.layer{layer}.{block}.conv1.weight" in w:
            stride = 2 if layer > 1 and block == 0 else 1
            x = residual(w, f"{net}.layer{layer}.{block}", x, stride)
            block += 1
        reduce = f"base.reduce{layer + 1}"
        levels[layer + 1] = group_norm(w, f"{reduce}.1", conv(w, f"{reduce}.0", x), groups)
    return levels


def box_of(mask: Tensor, last: Box | None) -> Box:
    """Return the tight box of a soft mask's pixels above 0.5; the last box if there are none."""
    inside = mask > 0.5
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    if len(rows) == 0:
        if last is None:
            raise ValueError("an object's first mask is empty; give it a pixel")
        return last
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def pool_weights(start: float, end: float, length: int, size: int, sampling: int) -> Tensor:
    """Return the weight of each of `length` cells in each of `size` bins from start to end, [size,
    length]: `sampling` linear samples per bin, of weight 0 beyond -1 and `length`."""
    weights = np.zeros((size, length))
    bin_length = (end - start) / size
    for i in range(size):
        for j in range(sampling):
            at = start + (i + (j + 0.5) / sampling) * bin_length
            if at < -1 or at > length:
                continue
            at = min(max(at, 0.0), length - 1.0)
            low = int(at)
            high = min(low + 1, length - 1)
            weights[i, low] += (1 - (at - low)) / sampling
            weights[i, high] += (at - low) / sampling
    return torch.from_numpy(weights)


def pool(x: Tensor, box: Box, stride: int, size: int = 14, sampling: int = 2) -> Tensor:
    """ROIAlign [C, p, p] of a map [C, H, W]; the centre of its first cell is at half a cell."""
    x0, y0, x1, y1 = (edge / stride - 0.5 for edge in box)
    down = pool_weights(y0, y1, x.shape[1], size, sampling)
    across = pool_weights(x0, x1, x.shape[2], size, sampling)
    return torch.einsum("py,cyx,qx->cpq", down, x, across)


def object_features(base: Levels, box: Box, stages: tuple[int, ...], size: int) -> Tensor:
    """F [C, p, p]: the box pooled from the base features of every stage, concatenated."""
    return torch.cat([pool(base[stage], box, STRIDES[stage], size) for stage in stages])


def embed(delta: int, width: int) -> Tensor:
    """The Transformer's embedding [width] of a frame's distance to the object's first frame."""
    values = []
    for k in range(width // 2):
        angle = delta / 10000 ** (2 * k / width)
        values += [math.sin(angle), math.cos(angle)]
    return torch.tensor(values, dtype=torch.float64)


def with_time(feature: Tensor, delta: int) -> Tensor:
    return feature + embed(delta, len(feature))[:, None, None]


def remember(w: Weights, feature: Tensor, mask: Tensor, delta: int) -> tuple[Tensor, Tensor]:
    """Key [Ck, p, p] and value [C, p, p] of an object's features [C, p, p] and mask [1, p, p]."""
    x = torch.cat((with_time(feature, delta), mask))
    return conv(w, "memory_head.key", x), conv(w, "memory_head.value", x)


def query(w: Weights, feature: Tensor, delta: int) -> Tensor:
    """Q [Ck, p, p]."""
    return conv(w, "query_head", with_time(feature, delta))


def template(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Equation 1: softmax(Q K / sqrt(C / 4)) V over all positions of the memory; C / 4 is Ck."""
    k = torch.cat([key.flatten(1) for key in keys], dim=1)  # Ck Tpp
    v = torch.cat([value.flatten(1) for value in values], dim=1)  # C Tpp
    scores = q.flatten(1).T @ k / math.sqrt(len(k))  # pp Tpp
    return (v @ scores.softmax(dim=1).T).view(-1, *q.shape[1:])


def project(w: Weights, projector: str, x: Tensor, groups: int) -> Tensor:
    """Project into the shared space: [C, p, p] -> [Cd, p, p] (section 3.3)."""
    x = torch.relu(group_norm(w, f"{projector}.1", conv(w, f"{projector}.0", x), groups))
    return conv(w, f"{projector}.3", x)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """cos(i, j) [positions of a, positions of b] of maps [C, ., .]."""
    a, b = (x.flatten(1) / x.flatten(1).norm(dim=0).clamp(min=1e-12) for x in (a, b))
    return a.T @ b


def correspondences(target: Tensor, source: Tensor, alpha: float) -> Tensor:
    """Equation 2: S, a softmax over the positions of the source per position of the target."""
    return (alpha * cosines(target, source)).softmax(dim=1)


def align(template_map: Tensor, proposal: Tensor, alpha: float = 100.0) -> Tensor:
    """Equation 3: P''_i = sum_j S_ij P'_j, the proposal aligned with the template."""
    shares = correspondences(template_map, proposal, alpha)
    return (proposal.flatten(1) @ shares.T).view_as(template_map)


def score(template_map: Tensor, aligned: Tensor, kind: str = "mean") -> Tensor:
    """The mean over the positions of cos(T'_i, P''_i), or one cosine of the "flat" maps."""
    a, b = template_map.flatten(1), aligned.flatten(1)
    if kind == "flat":
        a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    lengths = a.norm(dim=0).clamp(min=1e-12) * b.norm(dim=0).clamp(min=1e-12)
    return ((a * b).sum(dim=0) / lengths).mean()


def match(
    similarity: ArrayLike, outer: int = 40, inner: int = 5, step: float = 0.1
) -> NDArray[np.float64]:
    """The assignment X [N, M] of DMM-Net's layer: min <C, X> with C = -similarity, X >= 0, rows
    that sum to 1 and columns to 1 at most, by projected gradient steps (Dykstra's projections)."""
    similarities = np.asarray(similarity, dtype=np.float64)
    n, proposals = similarities.shape
    m = n + 1 if proposals <= n else proposals
    cost = np.zeros((n, m))
    cost[:, :proposals] = -similarities
    best = np.full((n, m), cost.max())
    for column in range(m):
        row = int(cost[:, column].argmin())
        best[row, column] = cost[row, column]
    x = np.zeros((n, m))
    for row in range(n):
        x[row, best[row].argmin()] = 1
    corrections = [np.zeros((n, m)) for _ in range(3)]
    last = None
    for _ in range(outer):
        x = x - step * cost
        for _ in range(inner):
            for i, onto in enumerate((_not_negative, _columns_at_most_one, _rows_of_one)):
                moved = x + corrections[i]
                x = onto(moved)
                corrections[i] = moved - x
        length = float(np.linalg.norm(x * cost))
        if length == last:
            break
        last = length
    return x[:, :proposals]


def _not_negative(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(x, 0)


def _columns_at_most_one(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x - np.maximum(x.sum(axis=0) - 1, 0) / len(x)


def _rows_of_one(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x - (x.sum(axis=1, keepdims=True) - 1) / x.shape[1]


def coarse(assignment: Tensor, masks: Tensor, previous: Tensor) -> Tensor:
    """Sums [N, H, W] of the proposals' masks [M, H, W] weighted by A [N, M], cut to 0..1; without
    proposals the previous masks [N, H, W]."""
    if len(masks) == 0:
        return previous
    return torch.einsum("om,mhw->ohw", assignment, masks).clamp(0, 1)


def shrink(masks: Tensor, stride: int) -> Tensor:
    """Area averages [N, H / stride, W / stride]."""
    n, height, width = masks.shape
    blocks = masks.view(n, height // stride, stride, width // stride, stride)
    return blocks.mean(dim=(2, 4))


def move_reference(shares: Tensor, reference: Tensor, grid: tuple[int, int]) -> Tensor:
    """A reference's map [C, b h, b w] in b x b blocks, block i of the result being the sum of the
    reference's blocks k weighted by S_ik; S [h w, h w] of `grid` (h, w)."""
    height, width = grid
    side = reference.shape[1] // height
    moved = torch.zeros_like(reference)
    for y in range(side):  # position within the block
        for x in range(side):
            place = reference[:, y::side, x::side].flatten(1)
            moved[:, y::side, x::side] = (place @ shares.T).view(-1, height, width)
    return moved


def reference_shares(w: Weights, now: Tensor, reference: Tensor, alpha: float) -> Tensor:
    """S [h w, h w] from the current B4 to a reference's, as in equation 2."""
    return correspondences(conv(w, "refine.align", now), conv(w, "refine.align", reference), alpha)


def norm_block(w: Weights, name: str, x: Tensor, groups: int) -> Tensor:
    """STM's residual block with a norm after each convolution."""
    y = group_norm(w, f"{name}.norm1", conv(w, f"{name}.conv1", torch.relu(x)), groups)
    y = group_norm(w, f"{name}.norm2", conv(w, f"{name}.conv2", torch.relu(y)), groups)
    return y + (conv(w, f"{name}.downsample", x) if f"{name}.downsample.weight" in w else x)


def refine(
    w: Weights, now: Levels, first: Levels, previous: Levels, masks: Levels, groups: int
) -> Tensor:
    """The logit [4h, 4w] of one object (section 3.1) from the current base features, those of two
    references moved onto them, and per stage the masks [3, ., .]: coarse, first's, previous's."""

    def fused(stage: int) -> Tensor:
        name = f"refine.block{stage}"
        parts = (("now", now), ("first", first), ("previous", previous), ("masks", masks))
        joined = sum(conv(w, f"{name}.{part}", levels[stage]) for part, levels in parts)
        return norm_block(w, f"{name}.fuse", group_norm(w, f"{name}.norm", joined, groups), groups)

    x = fused(4)
    for stage in (3, 2):
        large = functional.interpolate(
            x[None], scale_factor=2, mode="bilinear", align_corners=False
        )[0]
        x = norm_block(w, f"refine.block{stage}.merge", fused(stage) + large, groups)
    background, foreground = conv(w, "refine.predict", torch.relu(x))
    return foreground - background


def object_template(
    w: Weights,
    bases: list[Levels],
    masks: list[Tensor],
    first: int,
    memory: list[int],
    stages: tuple[int, ...],
    size: int,
) -> Tensor:
    """T [C, p, p] of the object with the masks [H, W] of all frames before the last."""
    keys, values, box = [], [], None
    for frame in range(first, len(masks)):
        box = box_of(masks[frame], box)
        if frame in memory:
            feature = object_features(bases[frame], box, stages, size)
            region = pool(masks[frame][None], box, 1, size)
            key, value = remember(w, feature, region, frame - first)
            keys.append(key)
            values.append(value)
    assert box is not None
    now = object_features(bases[-1], box, stages, size)
    return template(query(w, now, len(masks) - first), keys, values)


def transcribe(
    weights: Weights,
    frames: list[Tensor],
    masks: list[Tensor],
    boxes: list[Box],
    proposals: Tensor,
    *,
    norm_groups: int = 32,
    alpha: float = 100.0,
    pooled: int = 14,
    stages: tuple[int, ...] = (2, 3, 4),
    similarity: str = "mean",
    first_frames: list[int] | None = None,
    memory: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segment the last of the frames [1, 3, H, W] (normalised), whose sides are multiples of 16.

    masks         per frame before the last, soft masks [N, H, W] of all objects
    boxes         of the last frame's proposals (x0, y0, x1, y1), with their masks [M, H, W]
    stages        of the base features that make the object features
    first_frames  of the objects, by default 0; memory: the remembered frames, by default all

    Returns coarse masks [N, H / 4, W / 4], logits [N, H / 4, W / 4] before the aggregation,
    similarity [N, M] and assignment [N, M].
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    bases = [base_features(w, frame[0].double(), norm_groups) for frame in frames]
    masks = [frame.double() for frame in masks]
    firsts = [0] * len(masks[0]) if first_frames is None else first_frames
    kept = list(range(len(masks))) if memory is None else memory
    aligned_maps = [
        project(w, "proposal_projector", object_features(bases[-1], box, stages, pooled),
                norm_groups)
        for box in boxes
    ]  # fmt: skip
    similarities = torch.zeros(len(firsts), len(boxes), dtype=torch.float64)
    for o, first in enumerate(firsts):
        t = object_template(w, bases, [x[o] for x in masks], first, kept, stages, pooled)
        t = project(w, "template_projector", t, norm_groups)
        for j, proposal in enumerate(aligned_maps):
            similarities[o, j] = score(t, align(t, proposal, alpha), similarity)
    assigned = torch.from_numpy(match(similarities.detach().numpy()))
    coarse_masks = coarse(assigned, proposals.double(), masks[-1])
    grid = (bases[-1][4].shape[1], bases[-1][4].shape[2])
    logits = []
    for o, first in enumerate(firsts):
        moved, levels = [], {s: [shrink(coarse_masks[o, None], STRIDES[s])] for s in STRIDES}
        for frame in (first, len(masks) - 1):
            shares = reference_shares(w, bases[-1][4], bases[frame][4], alpha)
            moved.append({s: move_reference(shares, x, grid) for s, x in bases[frame].items()})
            for s, maps in levels.items():
                reference = shrink(masks[frame][o, None], STRIDES[s])
                maps.append(move_reference(shares, reference, grid))
        joined = {s: torch.cat(maps) for s, maps in levels.items()}
        logits.append(refine(w, bases[-1], *moved, joined, norm_groups))
    return shrink(coarse_masks, 4), torch.stack(logits), similarities, assigned
