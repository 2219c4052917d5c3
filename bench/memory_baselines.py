"""Baselines of `read_memory`; see baselines.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vosengine.kernels import read_memory
from vosengine.kernels.read_memory.reference import positions_of

Baseline = Callable[..., Any]


def in_groups(attend: Baseline, *, joined: bool = True) -> Baseline:
    """Return read_memory by attend(query, key, value, scale), of all groups at once or of one.

    With `length` every group is sliced to its own: 2.7 times as fast as a mask (CPU).

    joined  whether `attend` is given the sets of values as one wide value
    """

    def call(
        query_key: torch.Tensor,
        memory_key: torch.Tensor,
        memory_value: torch.Tensor,
        *,
        scale: float,
        length: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def each(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return attend(query, key, _join_sets(value, key) if joined else value, scale)

        queries = query_key.expand(len(memory_key), -1, -1)
        if length is None:
            out = each(queries, memory_key, memory_value)
        else:
            groups = zip(queries, memory_key, memory_value, length.tolist(), strict=True)
            out = torch.stack([each(q, key[:n], value[..., :n, :]) for q, key, value, n in groups])
        return _part_sets(out, memory_value) if joined else out

    return call


@in_groups
def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """read_memory by torch's scaled_dot_product_attention."""
    batched = (x if x.ndim == 3 else x[None] for x in (query, key, value))
    out = functional.scaled_dot_product_attention(*batched, scale=scale)
    return out.view(*query.shape[:-1], value.shape[-1])


@partial(in_groups, joined=False)
def matmul(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """read_memory by two matrix products and a softmax, with all scores stored."""
    weights = (query * scale @ key.mT).softmax(dim=-1)
    return (weights.unsqueeze(-3) if value.ndim > key.ndim else weights) @ value


def separate(
    query_key: torch.Tensor, memory_key: torch.Tensor, memory_value: torch.Tensor, **arguments: Any
) -> torch.Tensor:
    """read_memory by this library's op, one call per set of values."""
    if memory_value.ndim == 3:
        return read_memory(query_key, memory_key, memory_value, **arguments)
    sets = [
        read_memory(query_key, memory_key, value, **arguments) for value in memory_value.unbind(1)
    ]
    return torch.stack(sets, dim=1)


def by_copy(attend: Baseline) -> Baseline:
    """Return the baseline with paged memory copied to contiguous memory before each call."""

    def call(**arguments: Any) -> torch.Tensor:
        return attend(**in_one_piece(**arguments))

    return call


def in_one_piece(
    *, pages: torch.Tensor | None = None, query_of: torch.Tensor | None = None, **arguments: Any
) -> dict[str, Any]:
    """Return the arguments without pages and query_of: what they index is gathered by a copy."""
    if pages is not None:
        for name in ("memory_key", "memory_value", "bias"):
            if arguments.get(name) is not None:
                arguments[name] = positions_of(arguments[name], pages)
    if query_of is not None:
        arguments["query_key"] = arguments["query_key"][query_of]
    return arguments


class Contiguous:
    """read_memory by this library's op on contiguous memory, to measure the cost of pages. The copy
    is made once per pool, before timing."""

    def __init__(self) -> None:
        self.pool: torch.Tensor | None = None
        self.copied: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> torch.Tensor:
        if "pages" not in arguments:
            raise RuntimeError("memory is contiguous already")
        if self.pool is not arguments["memory_key"]:
            self.pool, self.copied = arguments["memory_key"], in_one_piece(**arguments)
        return read_memory(**self.copied)


def sdpa_by(backend: SDPBackend) -> Baseline:
    """read_memory by one backend of scaled_dot_product_attention.

    Raises  RuntimeError with torch's reasons if that backend does not support the call.
    """
    return in_groups(partial(_attend_by, backend))


@in_groups
def split_value(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """read_memory by flash attention on slices of the value that have as many channels as the key,
    the way to use it if Cv is a multiple of Ck.

    Raises  RuntimeError if Cv is no multiple, or flash attention does not support the slices.
    """
    width, channels = query.shape[-1], value.shape[-1]
    if channels % width:
        raise RuntimeError(f"values of {channels} channels are not a multiple of the key's {width}")
    flash = SDPBackend.FLASH_ATTENTION
    parts = [_attend_by(flash, query, key, part, scale) for part in value.split(width, dim=-1)]
    return torch.cat(parts, dim=-1)


def _join_sets(value: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[.., N, S * Cv]"""
    return value.transpose(-3, -2).flatten(-2) if value.ndim > key.ndim else value


def _part_sets(out: torch.Tensor, memory_value: torch.Tensor) -> torch.Tensor:
    if memory_value.ndim == 3:
        return out
    return out.unflatten(-1, (memory_value.shape[1], -1)).transpose(-3, -2).contiguous()


def _attend_by(
    backend: SDPBackend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Return [G, P, Cv] or [P, Cv]; groups are a batch of one head each, as fused kernels need."""
    heads = [x[:, None] if x.ndim == 3 else x[None, None] for x in (query, key, value)]
    with warnings.catch_warnings(record=True) as caught, sdpa_kernel(backend):
        warnings.simplefilter("always")  # torch reports its reasons as warnings
        try:
            out = functional.scaled_dot_product_attention(*heads, scale=scale)
        except RuntimeError as error:
            reasons = [str(warning.message).split(" (Triggered")[0] for warning in caught]
            lines = str(error).splitlines()[:1] + [
                r for r in reasons if "not used because" not in r
            ]
            raise RuntimeError("; ".join(lines)) from error
    return out.view(*query.shape[:-1], value.shape[-1])


def flex(attention: Baseline) -> Baseline:
    """read_memory by FlexAttention, `attention` being the compiled flex_attention: bias and length
    are read for every score."""

    def call(
        query_key: torch.Tensor,
        memory_key: torch.Tensor,
        memory_value: torch.Tensor,
        *,
        scale: float,
        bias: torch.Tensor | None = None,
        length: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def change(
            score: torch.Tensor,
            group: torch.Tensor,
            head: torch.Tensor,
            query: torch.Tensor,
            position: torch.Tensor,
        ) -> torch.Tensor:
            if bias is not None:
                score = score + bias[group, position]
            if length is not None:
                score = torch.where(position < length[group], score, -torch.inf)
            return score

        queries = query_key.expand(len(memory_key), -1, -1)[:, None]
        values = _join_sets(memory_value, memory_key)[:, None]
        plain = bias is None and length is None
        out = attention(
            queries, memory_key[:, None], values, score_mod=None if plain else change, scale=scale
        )
        return _part_sets(out[:, 0], memory_value)

    return call
