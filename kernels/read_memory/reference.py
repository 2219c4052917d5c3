"""`read_memory` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import torch

from ..shapes import FLOATS, ShapeError, check, check_dtype


def contract(
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
) -> None:
    memory = "G N" if pages is None else "K L"
    arguments = {
        "query_key": (query_key, _query_pattern(query_key, query_of)),
        "memory_key": (memory_key, f"{memory} Ck"),
        "memory_value": (memory_value, _value_pattern(memory_value, pages)),
    }
    if pages is not None:
        arguments["pages"] = (pages, "G T")
        check_dtype("pages", pages, torch.int32)
    if bias is not None:
        arguments["bias"] = (bias, memory)
    if length is not None:
        arguments["length"] = (length, "G")
        check_dtype("length", length, torch.int32)
    if query_of is not None:
        arguments["query_of"] = (query_of, "G")
        check_dtype("query_of", query_of, torch.int32)
    sizes = check(arguments)
    check_dtype("query_key", query_key, *FLOATS)
    check_dtype("memory_key", memory_key, query_key.dtype)
    check_dtype("memory_value", memory_value, query_key.dtype)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: wanted at least 1, given {top_k}; None reads all positions")
    if pages is None and sizes["N"] == 0:
        raise ShapeError("memory_key: wanted at least one memory position, given N = 0")
    if pages is not None and (sizes["K"] == 0 or sizes["L"] == 0):
        given = list(memory_key.shape)
        raise ShapeError(f"memory_key: wanted at least one page of one position, given {given}")
    if pages is not None and sizes["T"] == 0:
        raise ShapeError("pages: wanted at least one page for a group, given T = 0")
    if query_of is not None and sizes["B"] == 0 < sizes["G"]:
        raise ShapeError(
            f"query_key: wanted at least one query for {sizes['G']} groups, given B = 0"
        )


def _query_pattern(query_key: torch.Tensor, query_of: torch.Tensor | None) -> str:
    given = list(query_key.shape)
    if query_of is not None:
        if query_key.ndim != 3:
            raise ShapeError(f"query_key: with query_of wanted [B, P, Ck], given {given}")
        return "B P Ck"
    if query_key.ndim not in (2, 3):
        raise ShapeError(f"query_key: wanted [P, Ck] or [G, P, Ck], given {given}")
    return "P Ck" if query_key.ndim == 2 else "G P Ck"


def _value_pattern(memory_value: torch.Tensor, pages: torch.Tensor | None) -> str:
    given = list(memory_value.shape)
    if pages is not None:
        if memory_value.ndim != 3:
            raise ShapeError(
                f"memory_value: with pages wanted [K, L, Cv], given {given}; pages hold one set of "
                "values"
            )
        return "K L Cv"
    if memory_value.ndim not in (3, 4):
        raise ShapeError(f"memory_value: wanted [G, N, Cv] or [G, S, N, Cv], given {given}")
    return "G N Cv" if memory_value.ndim == 3 else "G S N Cv"


def positions_of(pool: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """Gather pages: pool [K, L, ...], pages [G, T] -> positions of every group [G, T * L, ...]."""
    return pool[pages.clamp(0, len(pool) - 1)].flatten(1, 2)


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
    """Attention over a memory: the softmax-weighted mean of the values for every query position, by
    group, with scores shared by all sets of values.

        score[g, n, p] = scale * <memory_key[g, n], query_key[g, p]> + bias[g, n]
        out[g, s, p]   = sum over n of softmax_n(score)[g, n, p] * memory_value[g, s, n]

    query_key     [P, Ck] or [G, P, Ck]   one query for all groups, or one for each; with query_of
                               [B, P, Ck]
    memory_key    [G, N, Ck]   last axis contiguous; a prefix view of a larger bank is not copied
    memory_value  [G, N, Cv] or [G, S, N, Cv]   one set of values, or S sets; any axis but the
                               last may be a prefix view, as with memory_key
    bias          [G, N]       any float dtype, added to the scores; None means 0
    length        [G] int32 on the device: positions at or past it are never read; None means N
    top_k         1 or more: each query reads only the positions whose score is at least its
                  top_k-th greatest one, ties included; the softmax runs over these. None, or at
                  least the number of positions: all of them
    pages         [G, T] int32 on the device: memory_key is then a pool of pages [K, L, Ck] (and
                               memory_value [K, L, Cv], bias [K, L]; prefix views as above), in
                               which position n of group g is [pages[g, n // L], n % L]; N = T * L.
                               Groups may share pages. Page numbers at and past a group's length
                               may have any value and are never used
    query_of      [G] int32 on the device: the query of group g is query_key[query_of[g]]
    returns       [G, P, Cv] or [G, S, P, Cv], as memory_value; new, contiguous, dtype of query_key

    Dtype   float16, bfloat16 or float32 (float64 in the reference alone), one for all but bias;
            scores, maximum and sums in float32.
    Device  one for all; no synchronisation with the host, so values of pages and query_of are not
            checked: they are clamped to 0..K-1 and 0..B-1. Inputs unchanged.
    Empty   N = 0 is an error; G = 0 returns [0, P, Cv] or [0, S, P, Cv]; S = 0 returns
            [G, 0, P, Cv]; a group of length 0 returns zeros.
    Error   at most twice that of this function in the same dtype, against itself in float32;
            with top_k, unless rounding decides which scores are the greatest.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for top_k < 1.
    Source  STM, section 3.3; sets: GIEL, equations 4, 5 and 9; a query per group: DMN-AOA,
            equation 1; top_k: XMem, section 3.2 (30 there).
    """
    if pages is not None:
        memory_key = positions_of(memory_key, pages)
        memory_value = positions_of(memory_value, pages)
        bias = None if bias is None else positions_of(bias, pages)
    if query_of is not None:
        query_key = query_key[query_of.clamp(0, max(len(query_key) - 1, 0))]
    wide = torch.promote_types(query_key.dtype, torch.float32)
    query = query_key.to(wide).expand(len(memory_key), -1, -1)
    scores = scale * torch.einsum("gnc,gpc->gpn", memory_key.to(wide), query)
    if bias is not None:
        scores = scores + bias.to(wide)[:, None, :]
    sets = memory_value if memory_value.ndim == 4 else memory_value[:, None]
    if length is not None:
        valid = torch.arange(memory_key.shape[1], device=length.device) < length[:, None]
        scores = scores.masked_fill(~valid[:, None, :], -torch.inf)
    if top_k is not None and top_k < memory_key.shape[1]:
        least = scores.topk(top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if length is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        weights = torch.softmax(scores, dim=-1).masked_fill(~valid[:, None, :], 0)
        sets = sets.masked_fill(~valid[:, None, :, None], 0)
    out = torch.einsum("gpn,gsnv->gspv", weights.to(query_key.dtype), sets).contiguous()
    return out if memory_value.ndim == 4 else out[:, 0]
