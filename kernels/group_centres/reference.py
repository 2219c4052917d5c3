"""`group_centres` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..shapes import FLOATS, ShapeError, check, check_dtype

Groups = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def contract(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> None:
    sizes = check(
        {
            "heatmap": (heatmap, "B H W"),
            "offset": (offset, "B 2 H W"),
            "foreground": (foreground, "B H W"),
        }
    )
    if min(sizes["H"], sizes["W"]) < 1:
        raise ShapeError(f"heatmap: wanted at least one pixel, given {list(heatmap.shape)}")
    check_dtype("heatmap", heatmap, *FLOATS)
    check_dtype("offset", offset, heatmap.dtype)
    check_dtype("foreground", foreground, torch.bool)
    if math.isnan(threshold):
        raise ValueError(f"threshold: wanted a number, given {threshold}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: wanted an odd number of cells, given {window}")
    if not 1 <= limit <= 255:
        raise ValueError(f"limit: wanted 1 to 255 centres, given {limit}")


def group_centres(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> Groups:
    """Group pixels into instances: peaks of a heat map are centres, offsets assign pixels to them.

        peak(x)    heat[x] > threshold, no cell in its window is greater, and no equal cell in its
                   window comes before it in reading order
        centres    the `limit` highest peaks: by falling heat, equal ones in reading order
        label[x] = 1 + argmin over c of |(x - centre_c) + offset[x]|^2,  the lower index if equal

    heatmap     [B, H, W]     likelihood of a centre, any strides
    offset      [B, 2, H, W]  (y, x) in pixels from a pixel to its centre, any strides
    foreground  [B, H, W]     bool, the pixels to label, any strides
    threshold   lower bound of a centre's heat, exclusive; any number, compared in float64
    window      odd side of a peak's window in pixels, clipped at the border of the frame
    limit       1 to 255, maximum number of centres per image
    returns     labels  [B, H, W] uint8: 0 in the background, else 1 + index of the centre
                centres [B, limit, 2] int32: (y, x), -1 where there are fewer
                scores  [B, limit] in the dtype of heatmap: the centres' heat, 0 where fewer;
                all new and contiguous

    In an image without a centre all foreground is labelled 1. Heat that is not finite counts as
    lower than any number: it is no centre and suppresses none. A pixel whose offset is not finite,
    or so large that its squared distances overflow, joins the first centre.

    Dtype   float16, bfloat16, float32 or float64, one for heatmap and offset; distances in float32
            or wider.
    Device  one for all; no synchronisation with the host.
    Empty   B = 0 returns [0, H, W], [0, limit, 2] and [0, limit].
    Error   centres and scores are exact; a label may differ where the two smallest squared
            distances are equal to 2^-20 of themselves, and not otherwise.
    Raises  ShapeError, naming argument, wanted shape and given shape, or its dtype; ValueError for
            an option.
    Source  Panoptic-DeepLab (threshold 0.1, window 7), as used by target-aware U-VOS, section 3.1.
            Neither defines plateaus; one centre per plateau is our choice.
    """
    height, width = heatmap.shape[1:]
    wide = torch.promote_types(heatmap.dtype, torch.float32)
    heat = heatmap.to(wide)
    heat = torch.where(heat.isfinite(), heat, -torch.inf)
    is_peak = (heat.double() > threshold) & _leads_its_window(heat, window // 2)

    ranked, order = torch.sort(
        heat.masked_fill(~is_peak, -torch.inf).flatten(1), dim=1, descending=True, stable=True
    )
    missing = max(0, limit - height * width)
    scores = functional.pad(ranked[:, :limit], (0, missing), value=-torch.inf)
    cells = functional.pad(order[:, :limit], (0, missing))
    absent = scores == -torch.inf
    centres = torch.stack((cells // width, cells % width), dim=2)  # [B, limit, 2]

    y = torch.arange(height, device=heatmap.device)[:, None]
    x = torch.arange(width, device=heatmap.device)
    from_y = (y - centres[:, :, 0, None, None]) + offset[:, 0, None].to(wide)
    from_x = (x - centres[:, :, 1, None, None]) + offset[:, 1, None].to(wide)
    distances = from_y.square() + from_x.square()  # [B, limit, H, W]
    distances = distances.masked_fill(absent[:, :, None, None], torch.inf)
    labels = torch.where(foreground, 1 + distances.argmin(dim=1), 0)
    return (
        labels.to(torch.uint8).contiguous(),
        centres.masked_fill(absent[:, :, None], -1).to(torch.int32),
        scores.masked_fill(absent, 0).to(heatmap.dtype),
    )


def _leads_its_window(heat: torch.Tensor, radius: int) -> torch.Tensor:
    """Return [B, H, W] bool: the cell is greater than all cells within `radius` that precede it in
    reading order, and not less than those that follow."""
    if radius == 0:
        return torch.ones_like(heat, dtype=torch.bool)
    height, width = heat.shape[1:]
    side = 2 * radius + 1
    padded = functional.pad(heat, (radius,) * 4, value=-torch.inf)[:, None]
    window = functional.max_pool2d(padded, side, stride=1)
    rows_above = padded[:, :, : height + radius - 1]
    above = functional.max_pool2d(rows_above, (radius, side), stride=1)
    same_row = padded[:, :, radius : radius + height, : width + radius - 1]
    left = functional.max_pool2d(same_row, (1, radius), stride=1)
    return (heat >= window[:, 0]) & (heat > above[:, 0]) & (heat > left[:, 0])
