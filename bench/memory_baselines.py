"""Baselines of `read_memory`; see baselines.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vosengine.kernels import read_memory
from vosengine.kernels.read_memory.reference import positions_of

Baseline = Callable[..., Any]


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


def by_copy(attend: Baseline) -> Baseline:
    """A peer that wants each group's memory in one piece: what lies in pages is copied first."""

    def call(**given: Any) -> torch.Tensor:
        return attend(**in_one_piece(**given))

    return call


def in_one_piece(
    *, pages: torch.Tensor | None = None, query_of: torch.Tensor | None = None, **given: Any
) -> dict[str, Any]:
    """The same call of read_memory without pages and query_of, by a copy of all that they name."""
    if pages is not None:
        for name in ("memory_key", "memory_value", "bias"):
            if given.get(name) is not None:
                given[name] = positions_of(given[name], pages)
    if query_of is not None:
        given["query_key"] = given["query_key"][query_of]
    return given


class Contiguous:
    """read_memory by this library's own op on memory that lies in one piece: what pages cost. The
    copy is made once for a pool, before anything is timed."""

    def __init__(self) -> None:
        self.pool: torch.Tensor | None = None
        self.copied: dict[str, Any] = {}

    def __call__(self, **given: Any) -> torch.Tensor:
        if "pages" not in given:
            raise RuntimeError("memory lies in one piece as it is")
        if self.pool is not given["memory_key"]:
            self.pool, self.copied = given["memory_key"], in_one_piece(**given)
        return read_memory(**self.copied)


def sdpa_by(backend: SDPBackend) -> Baseline:
    """read_memory by one named backend of scaled_dot_product_attention.

    Raises  RuntimeError with torch's own words where that backend refuses the call.
    """

    def call(
        query_key: torch.Tensor,
        memory_key: torch.Tensor,
        memory_value: torch.Tensor,
        *,
        scale: float,
        length: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return _attend_by(backend, query, key, _join_sets(value, key), scale)

        out = _by_length(attend, query_key, memory_key, memory_value, length)
        return _part_sets(out, memory_value)

    return call


def split_value(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    length: torch.Tensor | None = None,
) -> torch.Tensor:
    """read_memory by flash attention on as many channels of the value as the key has, again and
    again: the way to use it where Cv is a multiple of Ck.

    Raises  RuntimeError where Cv is no multiple, or flash attention refuses the parts.
    """
    width = query_key.shape[-1]
    channels = memory_value.shape[-1]
    if channels % width:
        raise RuntimeError(f"values of {channels} channels do not part into keys' {width}")

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        parts = _join_sets(value, key).split(width, dim=-1)
        flash = SDPBackend.FLASH_ATTENTION
        return torch.cat([_attend_by(flash, query, key, part, scale) for part in parts], dim=-1)

    return _part_sets(_by_length(attend, query_key, memory_key, memory_value, length), memory_value)


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
    """[G, P, Cv] or [P, Cv]: groups as a batch of one head each, as the fused kernels ask."""
    heads = [x[:, None] if x.ndim == 3 else x[None, None] for x in (query, key, value)]
    with warnings.catch_warnings(record=True) as said, sdpa_kernel(backend):
        warnings.simplefilter("always")  # its reasons come as warnings
        try:
            out = functional.scaled_dot_product_attention(*heads, scale=scale)
        except RuntimeError as error:
            reasons = [str(each.message).split(" (Triggered")[0] for each in said]
            lines = str(error).splitlines()[:1] + [
                r for r in reasons if "not used because" not in r
            ]
            raise RuntimeError("; ".join(lines)) from error
    return out.view(*query.shape[:-1], value.shape[-1])


def flex(attention: Baseline) -> Baseline:
    """read_memory by FlexAttention, given flex_attention as it came from torch.compile: bias and
    length are looked up for every score."""

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
