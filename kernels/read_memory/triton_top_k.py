"""Triton programs that compute the top_k-th greatest score of every query.

Scores are computed in the same tiles as in the passes that use them, so a score equal to the
threshold is bitwise equal.
"""

# mypy: ignore-errors
from __future__ import annotations

from ..gpu import tl, triton
from .triton_blocks import (
    block_at,
    end_of,
    held_queries,
    live_parts,
    memory_of_group,
    part_size,
    query_of_group,
    scores,
)


@triton.jit
def _empty_list(top_k, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Return an empty list [rows, KEPT]: top_k slots of -inf, the others +inf. Once the slots are
    full, the minimum is the top_k-th greatest score."""
    place = tl.where(tl.arange(0, KEPT) < top_k, float("-inf"), float("inf"))
    return tl.zeros([ROWS, KEPT], tl.float32) + place[None, :]


@triton.jit
def _keep_best(kept, score, KEPT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Insert scores above the minimum of the list in its place, one per row and iteration; after
    the first blocks few iterations are needed."""
    place, lane = tl.arange(0, KEPT), tl.arange(0, BLOCK_N)
    least, worst = tl.min(kept, 1, return_indices=True)
    most, best = tl.max(score, 1, return_indices=True)
    while tl.max((most > least).to(tl.int32), 0) > 0:
        better = (most > least)[:, None]
        kept = tl.where(better & (place[None, :] == worst[:, None]), most[:, None], kept)
        score = tl.where(better & (lane[None, :] == best[:, None]), float("-inf"), score)
        least, worst = tl.min(kept, 1, return_indices=True)
        most, best = tl.max(score, 1, return_indices=True)
    return kept


@triton.jit
def find_best(
    query, key, bias, length, best, pages, query_of,
    query_group, query_row, key_group, key_row, bias_group, bias_row,
    queries, positions, key_channels, groups, parts, top_k, scale,
    query_count, page_count, columns, page, padded,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    KEPT: tl.constexpr,
):  # fmt: skip
    """Compute best [parts, G, P, KEPT]: the top_k greatest scores of every query in every part."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(queries, ROWS)
    row = program % row_blocks * ROWS + tl.arange(0, ROWS)
    part = program // row_blocks % parts
    group = (program // (row_blocks * parts)).to(tl.int64)

    end = end_of(length, group, positions, page, padded)
    size = part_size(end, parts, BLOCK_N)
    stop = tl.minimum((part + 1) * size, end)
    query = query_of_group(query, query_of, query_count, group, query_group)
    key = memory_of_group(key, pages, group, key_group)
    if bias is not None:
        bias = memory_of_group(bias, pages, group, bias_group)
    q0, q1 = held_queries(query, row, query_row, queries, key_channels, BLOCK_C, CHUNKS)
    kept = _empty_list(top_k, ROWS, KEPT)
    for first in range(part * size, stop, BLOCK_N):
        number, start, left = block_at(pages, page_count, columns, group, first, end, page, padded)
        score = scores(
            q0, q1, query, key, bias, None, row, pages, number, start, left,
            query_row, key_group, key_row, bias_group, bias_row, queries, key_channels, scale,
            ROWS, BLOCK_N, BLOCK_C, CHUNKS,
        )  # fmt: skip
        kept = _keep_best(kept, score, KEPT, BLOCK_N)
    if part * size < end:
        line = (part.to(tl.int64) * groups + group) * queries + row
        place = line[:, None] * KEPT + tl.arange(0, KEPT)[None, :]
        tl.store(best + place, kept, mask=(row < queries)[:, None])


@triton.jit
def find_threshold(
    best, length, threshold, queries, positions, groups, parts, top_k, page, padded,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Compute threshold [G, P]: the top_k-th greatest score over the parts of `find_best`."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(queries, ROWS)
    row = program % row_blocks * ROWS + tl.arange(0, ROWS)
    group = (program // row_blocks).to(tl.int64)
    rank = tl.arange(0, KEPT)

    end = end_of(length, group, positions, page, padded)
    inside = row < queries
    kept = _empty_list(top_k, ROWS, KEPT)
    for part in range(live_parts(end, parts, BLOCK_N)):
        place = ((part * groups + group) * queries + row)[:, None] * KEPT
        filled = inside[:, None] & (rank < top_k)[None, :]
        more = tl.load(best + place + rank[None, :], mask=filled, other=float("-inf"))
        kept = _keep_best(kept, more, KEPT, KEPT)
    tl.store(threshold + group * queries + row, tl.min(kept, 1), mask=inside)
