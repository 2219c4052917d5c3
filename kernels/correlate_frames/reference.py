"""`correlate_frames` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..shapes import FLOATS, ShapeError, check, check_dtype

OUTSIDE = ("zero", "exclude")


def contract(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> None:
    check({"query": (query, "B C h w"), "previous": (previous, "B C h w")})
    check_dtype("query", query, *FLOATS)
    check_dtype("previous", previous, query.dtype)
    if isinstance(temperature, torch.Tensor) and temperature.numel() != 1:
        raise ShapeError(f"temperature: wanted one number, given {list(temperature.shape)}")
    if radius < 0:
        raise ValueError(f"radius: wanted 0 or more cells, given {radius}")
    if outside not in OUTSIDE:
        raise ValueError(f"outside: wanted one of {', '.join(OUTSIDE)}, given {outside!r}")


def correlate_frames(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    """Soft displacement and confidence of every cell from a local cosine cost volume.

        C[u, x] = <query[x], previous[x + u]> / (|query[x]| |previous[x + u]|),  u in [-r, r]^2
        d[x]    = sum over u of u * softmax_u(temperature * C[u, x])
        m[x]    = max over u of C[u, x]

    query        [B, C, h, w]   features of the current frame, any strides
    previous     [B, C, h, w]   features of the previous frame, any strides
    radius       cells on each side, 0 or more: 12 gives the paper's window of 25 x 25
    temperature  a number or a tensor of one element: the paper's soft-argmin, read literally, is -1
    outside      candidates beyond the frame have C = 0 ("zero") or are left out ("exclude")
    returns      [B, 3, h, w]   (d_x, d_y, m), d in cells; new, contiguous, dtype of query

    Dtype   float16, bfloat16 or float32, one for both; norms, C and the softmax in float32.
    Device  one for both; no synchronisation with the host; the volume C is never stored by a
            backend (this reference stores it).
    Empty   B = 0 returns [0, 3, h, w]. A zero vector has C = 0 everywhere (norms are at least
            1e-12).
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for an option.
    Source  MUNet, section 3.2, equations 1 and 2 (its C is U x V x H' x W').
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    batch, _, height, width = query.shape
    side = 2 * radius + 1
    unit = [functional.normalize(x.to(wide), dim=1, eps=1e-12) for x in (query, previous)]
    padded = functional.pad(unit[1], (radius,) * 4)
    inside = functional.pad(unit[1].new_ones(1, 1, height, width), (radius,) * 4)
    volume, valid = [], []
    for dy in range(side):
        for dx in range(side):
            shifted = padded[:, :, dy : dy + height, dx : dx + width]
            volume.append((unit[0] * shifted).sum(dim=1))
            valid.append(inside[:, 0, dy : dy + height, dx : dx + width] > 0)
    cost = torch.stack(volume, dim=1)  # [B, side * side, h, w]
    scores = temperature * cost
    if outside == "exclude":
        beyond = ~torch.stack(valid, dim=1)
        cost, scores = cost.masked_fill(beyond, -torch.inf), scores.masked_fill(beyond, -torch.inf)
    weights = torch.softmax(scores, dim=1).view(batch, side, side, height, width)
    offsets = torch.arange(-radius, radius + 1, device=query.device, dtype=wide)
    d_x = torch.einsum("bvuhw,u->bhw", weights, offsets)
    d_y = torch.einsum("bvuhw,v->bhw", weights, offsets)
    return torch.stack((d_x, d_y, cost.amax(dim=1)), dim=1).to(query.dtype)
