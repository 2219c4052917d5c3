"""Replacements of ops during export, in operators that are fast in onnxruntime.

Each satisfies its op's contract for the calls that the models make (no read of length 0, no frame
index). Ops without a replacement are traced through their reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from onnxscript import opset19, opset20
from torch.nn import functional

from ... import kernels as ops
from ...kernels import stand_in, use_backend
from ...kernels.read_memory.reference import positions_of
from . import centres, layout, regions

NEVER = -1e30  # a score with softmax weight 0
TIES = 6  # the largest memory of a shipped network, in frames: those of a still clip all tie


def read_memory(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    top_k: int | None = None,
    pages: torch.Tensor | None = None,
    query_of: torch.Tensor | None = None,
) -> torch.Tensor:
    """Two matrix products and a softmax; positions beyond `length` must be finite.

    In full precision, bias and length are encoded as one more channel of the keys: this saves a
    pass over the scores, by far the largest tensor.
    """
    wide = torch.promote_types(query_key.dtype, torch.float32)
    if pages is not None:
        memory_key = positions_of(memory_key, pages)
        memory_value = positions_of(memory_value, pages)
        bias = None if bias is None else positions_of(bias, pages)
    if query_of is not None:
        query_key = query_key[query_of]
    if query_key.ndim == 2:
        query_key = query_key[None]
    if length is not None:
        places = torch.arange(memory_key.shape[1], device=length.device)
        is_there = places < length[:, None]
        bias = torch.where(is_there, 0.0 if bias is None else bias.to(wide), NEVER)
    memory_key = scale * memory_key
    if bias is None:
        scores = (query_key @ memory_key.mT).to(wide)  # [G, P, N]
    elif query_key.dtype == wide:
        ones = query_key.new_ones(1, 1, 1).expand(*query_key.shape[:2], 1)
        query = torch.cat((query_key, ones), dim=2)
        scores = query @ torch.cat((memory_key, bias.to(wide)[..., None]), dim=2).mT
    else:
        scores = (query_key @ memory_key.mT).to(wide) + bias.to(wide)[:, None, :]
    if top_k is not None:
        return _read_closest(scores, memory_value, top_k)
    weights = scores.softmax(dim=-1).to(query_key.dtype)
    return weights @ memory_value if memory_value.ndim == 3 else weights[:, None] @ memory_value


def _read_closest(scores: torch.Tensor, memory_value: torch.Tensor, top_k: int) -> torch.Tensor:
    """Softmax over the top_k greatest scores [G, P, N] of every query, and the weighted mean of
    their values [G, N, Cv] or [G, S, N, Cv].

    Only these values are gathered: a product with all of them, nearly all with weight 0, is most of
    a step. Of the scores that tie with the last one, TIES are included at least; the op includes
    all.
    """
    positions = memory_value.shape[-2]
    sets = memory_value if memory_value.ndim == 4 else memory_value[:, None]
    best, index = scores.topk(torch.sym_min(top_k + TIES, positions), dim=-1)  # [G, P, K]
    least = best[..., :top_k][..., -1:]
    weights = torch.where(best < least, NEVER, best).softmax(dim=-1).to(memory_value.dtype)
    start = positions * torch.arange(sets.shape[0] * sets.shape[1], device=index.device)
    rows = index[:, None] + start.view(*sets.shape[:2], 1, 1)  # [G, S, P, K]
    values = functional.embedding(rows, sets.flatten(0, 2))  # [G, S, P, K, Cv]
    out = (weights[:, None, :, None] @ values)[..., 0, :]
    return out if memory_value.ndim == 4 else out[:, 0]


def correlate_frames(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    """Correlate all pairs of cells by one matrix product, then gather those of the window."""
    wide = torch.promote_types(query.dtype, torch.float32)
    height, width = query.shape[2:]
    unit = [functional.normalize(x.to(wide), dim=1, eps=1e-12) for x in (query, previous)]
    every = unit[0].flatten(2).mT @ unit[1].flatten(2)  # [B, P, P]
    steps = torch.arange(-radius, radius + 1, device=query.device)
    to_y, to_x = steps.repeat_interleave(len(steps)), steps.repeat(len(steps))
    y = torch.arange(height, device=query.device)[:, None, None] + to_y
    x = torch.arange(width, device=query.device)[None, :, None] + to_x
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).flatten(0, 1)[None]
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(0, 1)[None]
    cost = every.gather(2, index.expand(len(every), -1, -1))  # [B, P, side * side]
    cost = torch.where(inside, cost, 0.0 if outside == "zero" else NEVER)
    scores = temperature * cost
    if outside == "exclude":  # whatever the sign of the temperature
        scores = torch.where(inside, scores, NEVER)
    weights = scores.softmax(dim=2)
    moved = weights @ torch.stack((to_x, to_y), dim=1).to(wide)  # [B, P, 2]
    result = torch.cat((moved, cost.amax(dim=2, keepdim=True)), dim=2)
    return result.mT.unflatten(2, (height, width)).to(query.dtype)


@torch.library.custom_op("vosengine_onnx::deform_conv", mutates_args=())
def _deform_conv(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    padding: int,
    offset_groups: int,
) -> torch.Tensor:
    return ops.deform_conv.reference(x, offset, weight, bias=bias, padding=padding)


_deform_conv.register_fake(
    lambda x, offset, weight, *_: x.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:])
)


def _deform_conv_node(
    x: Any, offset: Any, weight: Any, bias: Any, padding: int, offset_groups: int
) -> Any:
    pads = [padding] * 4
    return opset19.DeformConv(
        x, weight, offset, bias, pads=pads, offset_group=offset_groups, strides=[1, 1]
    )


def deform_conv(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    padding: int = 0,
) -> torch.Tensor:
    """DeformConv-19 with stride 1, as used by frame alignment."""
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    groups = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])
    result: torch.Tensor = _deform_conv(x, offset, weight, bias, padding, groups)
    return result


def _log_add_exp_node(a: Any, b: Any) -> Any:
    """logaddexp without the overflow of torch's own translation."""
    apart = opset20.Neg(opset20.Abs(opset20.Sub(a, b)))
    return opset20.Add(opset20.Max(a, b), opset20.Softplus(apart))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.logaddexp.default: _log_add_exp_node,
    torch.ops.vosengine_onnx.deform_conv.default: _deform_conv_node,
    **centres.TRANSLATIONS,
    **layout.TRANSLATIONS,
    **regions.TRANSLATIONS,
}

STAND_INS: dict[str, Callable[..., Any]] = {
    "read_memory": read_memory,
    "correlate_frames": correlate_frames,
    "deform_conv": deform_conv,
    "group_centres": centres.group_centres,
    "pool_regions": regions.pool_regions,
}


@contextmanager
def exported_ops(others: Mapping[str, Callable[..., Any]] = MappingProxyType({})) -> Iterator[None]:
    """Context manager in which ops are replaced by `others`, else by STAND_INS, else by their
    references."""
    with use_backend("reference"), stand_in({**STAND_INS, **others}):
        yield
