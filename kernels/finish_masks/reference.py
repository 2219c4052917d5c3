"""`finish_masks` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..shapes import FLOATS, ShapeError, check, check_dtype

PROBABILITY_FLOOR = 1e-7  # STM's released soft aggregation clamps to [1e-7, 1 - 1e-7]
LOWEST_ODDS = PROBABILITY_FLOOR / (1 - PROBABILITY_FLOOR)


def contract(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    size: tuple[int, int],
    region: tuple[float, float, float, float],
    probabilities: bool = False,
    first: torch.Tensor | None = None,
) -> None:
    arguments = {"logits": (logits, "O h w"), "ids": (ids, "O")}
    if first is not None:
        if first.ndim != 1 or len(first) == 0:
            raise ShapeError(f"first: wanted [B + 1], given {list(first.shape)}")
        check_dtype("first", first, torch.int32)
        arguments["first"] = (first, "offsets")
    sizes = check(arguments)
    check_dtype("logits", logits, *FLOATS)
    check_dtype("ids", ids, torch.uint8)
    if min(sizes["h"], sizes["w"]) < 1:
        raise ValueError(f"logits: wanted at least one cell, given {list(logits.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: wanted (height, width) of at least 1, given {size}")
    if len(region) != 4 or min(region[2:]) <= 0:
        raise ValueError(f"region: wanted (top, left, height, width) in cells, given {region}")


def finish_masks(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    size: tuple[int, int],
    region: tuple[float, float, float, float],
    probabilities: bool = False,
    first: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels from coarse logits of every object: upsampling, soft aggregation, crop, argmax.

        p_o  = sigmoid(bilinear(logits_o)),  p_0 = product over o of (1 - p_o)
        q    = odds(p) / sum of odds(p),     odds(p) = p / (1 - p), p clamped to [1e-7, 1 - 1e-7]
        labels = id of the row of greatest q (the first where several are equal), 0 for row 0

    logits   [O, h, w]   foreground minus background, on the network's coarse grid
    ids      [O] uint8   object id of every row
    size     (H, W) of the result
    region   (top, left, height, width) of the part of the grid that the result covers, in cells:
             pixel (y, x) is read at ((y + 0.5) * height / H + top - 0.5, likewise x), clamped to
             the grid. A crop of a x4 upsampling (align_corners=False) is (pad / 4, ..., H / 4, ...)
    probabilities  whether to return q
    first    [B + 1] int32 on the device: the objects of B streams are concatenated, those of stream
             b in rows first[b] to first[b + 1] - 1, first[0] = 0; each stream is computed as a
             call of its own. Rows from first[B] on belong to no stream. It is on the device so that
             one captured graph serves any division of the rows
    returns  labels [H, W] uint8, and q [1 + O, H, W] float32 (row 0 the background) or None;
             new, contiguous. With first, labels [B, H, W] and q [O + B, H, W]: the background of
             stream b is q[first[b] + b], before its objects; rows of no stream are last, and 0

    Dtype   float16, bfloat16 or float32 in (float64 in the reference alone, q then float64);
            computed in float32.
    Device  one for all; no synchronisation with the host, so values of first are not checked: they
            are clamped to 0..O.
    Empty   O = 0, or a stream without objects, returns labels 0 and q = 1.
    Error   q at most twice that of this function in the same dtype, against itself in float64, or
            1e-5; labels equal wherever the two greatest q differ by more than that.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for an option.
    Source  STM, section 3.4 and its released code (sum of odds = softmax of the logits ln odds).
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = _taps(size[0], region[0], region[2], logits.shape[1], logits.device, wide)
    columns = _taps(size[1], region[1], region[3], logits.shape[2], logits.device, wide)
    fine = _lerp(_lerp(logits.to(wide), rows, dim=1), columns, dim=2)  # [O, H, W]
    # odds(p_o) = e^logit and odds(p_0) = 1 / (product of (1 + e^logit) - 1). Computed from p,
    # float32 has only 4 values between logits of 15 and 16, and labels are wrong.
    if first is None:
        background = 1 / torch.expm1(functional.softplus(fine).sum(dim=0, keepdim=True))
        odds = torch.cat((background, fine.exp())).clamp(LOWEST_ODDS, 1 / LOWEST_ODDS)
        aggregated = odds / odds.sum(dim=0, keepdim=True)
        table = torch.cat((ids.new_zeros(1), ids))
        labels = table[aggregated.max(dim=0).indices]
        return labels, aggregated if probabilities else None
    labels, aggregated = _finish_streams(fine, ids, first)
    return labels, aggregated if probabilities else None


def _finish_streams(
    fine: torch.Tensor, ids: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels [B, H, W] and q [O + B, H, W]. Every stream reads all rows and masks those of
    others: the division is known only on the device."""
    streams, rows = len(first) - 1, torch.arange(len(ids), device=ids.device)
    first = first.clamp(0, len(ids))
    table = torch.cat((ids.new_zeros(1), ids))
    labels = ids.new_zeros(streams, *fine.shape[1:])
    q = fine.new_zeros(len(ids) + streams, *fine.shape[1:])
    for stream in range(streams):
        others = ((rows < first[stream]) | (rows >= first[stream + 1]))[:, None, None]
        total = functional.softplus(fine).masked_fill(others, 0).sum(dim=0, keepdim=True)
        odds = torch.cat((1 / torch.expm1(total), fine.exp())).clamp(LOWEST_ODDS, 1 / LOWEST_ODDS)
        others = torch.cat((others.new_zeros(1, 1, 1), others))
        odds = odds.masked_fill(others, 0)
        aggregated = (odds / odds.sum(dim=0, keepdim=True)).masked_fill(others, 0)
        labels[stream] = table[aggregated.max(dim=0).indices]
        place = torch.cat((first[stream : stream + 1], rows + 1)) + stream
        q.index_add_(0, place, aggregated)
    return labels, q


Taps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _taps(
    count: int, start: float, extent: float, cells: int, device: torch.device, dtype: torch.dtype
) -> Taps:
    """Return, for every output index, its two neighbouring cells and the weight of the second."""
    position = (torch.arange(count, device=device, dtype=torch.float64) + 0.5) * extent / count
    position = (position + start - 0.5).clamp(0, cells - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=cells - 1), (position - low).to(dtype)


def _lerp(grid: torch.Tensor, taps: Taps, dim: int) -> torch.Tensor:
    low, high, weight = taps
    weight = weight[:, None] if dim == 1 else weight
    return torch.lerp(grid.index_select(dim, low), grid.index_select(dim, high), weight)
