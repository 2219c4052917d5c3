"""Other ways to compute what an op computes, as one would write them in torch without this library.

Every baseline takes the op's own arguments and returns what the op returns; the benchmark holds it
against the same reference before it times it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

Baseline = Callable[..., torch.Tensor]


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
    side = 2 * radius + 1
    query, previous = functional.normalize(query, dim=1), functional.normalize(previous, dim=1)
    padded = functional.pad(previous, (radius,) * 4)
    pairs = torch.bmm(query.flatten(2).mT, padded.flatten(2))  # [B, h * w, padded h * padded w]
    y = torch.arange(height, device=query.device)[:, None] + torch.arange(side, device=query.device)
    x = torch.arange(width, device=query.device)[:, None] + torch.arange(side, device=query.device)
    index = y[:, None, :, None] * padded.shape[3] + x[None, :, None, :]  # [h, w, side, side]
    index = index.reshape(1, height * width, side * side).expand(len(query), -1, -1)
    cosines = pairs.gather(2, index).mT.unflatten(2, (height, width))
    return _soft_argmax(cosines, temperature * cosines, radius)


def _by_length(
    attend: Baseline,
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    length: torch.Tensor | None,
) -> torch.Tensor:
    """All groups in one batch, or each cut to its length: 2.7 times as fast as a mask (CPU)."""
    if length is None:
        return attend(query_key.expand(len(memory_key), -1, -1), memory_key, memory_value)
    return torch.stack(
        [
            attend(query_key, keys[:end], values[:end])
            for keys, values, end in zip(memory_key, memory_value, length.tolist(), strict=True)
        ]
    )


def sdpa(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    length: torch.Tensor | None = None,
) -> torch.Tensor:
    """read_memory by torch's scaled_dot_product_attention."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
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
        return (query * scale @ key.mT).softmax(dim=-1) @ value

    return _by_length(attend, query_key, memory_key, memory_value, length)


BASELINES: dict[str, dict[str, Baseline]] = {
    "correlate_frames": {"unfold": unfold, "dense": dense},
    "read_memory": {"sdpa": sdpa, "matmul": matmul},
}
