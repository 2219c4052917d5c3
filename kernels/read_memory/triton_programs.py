"""Triton programs of `read_memory`; triton_kernel.py selects and launches them."""

# mypy: ignore-errors
from __future__ import annotations

from ..gpu import tl, triton
from .triton_blocks import (
    block_at,
    end_of,
    finite,
    held_queries,
    live_parts,
    memory_of_group,
    part_size,
    query_of_group,
    rows_at,
    scores,
    value_tile,
)


@triton.jit
def read_part(
    query, key, value, bias, length, threshold, out, peaks, sums, pages, query_of,
    query_group, query_row, key_group, key_row, value_group, value_set, value_row,
    bias_group, bias_row,
    queries, positions, key_channels, value_channels, readable, groups, sets, parts, scale,
    query_count, page_count, columns, page, padded,
    PARTED: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One pass with an online softmax. A program handles a block of queries of one group, one part
    of its memory and a block of value channels of one set. Writes `out`, or if PARTED partial sums
    for `merge`."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(queries, ROWS)
    value_blocks = tl.cdiv(value_channels, BLOCK_V)
    top = program % row_blocks * ROWS
    row = top + tl.arange(0, ROWS)
    block = program // row_blocks % (sets * value_blocks)
    rest = program // (row_blocks * sets * value_blocks)
    part = rest % parts
    group = (rest // parts).to(tl.int64)
    which, column = block // value_blocks, block % value_blocks * BLOCK_V + tl.arange(0, BLOCK_V)

    end = end_of(length, group, positions, page, padded)
    size = part_size(end, parts, BLOCK_N)
    stop = tl.minimum((part + 1) * size, end)
    query = query_of_group(query, query_of, query_count, group, query_group)
    key = memory_of_group(key, pages, group, key_group)
    value = memory_of_group(value, pages, group, value_group) + which.to(tl.int64) * value_set
    if bias is not None:
        bias = memory_of_group(bias, pages, group, bias_group)
    limit = None
    if threshold is not None:
        padding = float("-inf")
        limit = tl.load(threshold + group * queries + row, mask=row < queries, other=padding)

    q0, q1 = held_queries(query, row, query_row, queries, key_channels, BLOCK_C, CHUNKS)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, BLOCK_V], tl.float32)
    lane = tl.arange(0, BLOCK_N)
    for first in range(part * size, stop, BLOCK_N):
        number, start, left = block_at(pages, page_count, columns, group, first, end, page, padded)
        score = scores(
            q0, q1, query, key, bias, limit, row, pages, number, start, left,
            query_row, key_group, key_row, bias_group, bias_row, queries, key_channels, scale,
            ROWS, BLOCK_N, BLOCK_C, CHUNKS,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(score, 1))
        level = finite(higher)
        weight = tl.exp2(score - level[:, None])
        shrink = tl.exp2(peak - level)
        total = total * shrink + tl.sum(weight, 1)
        values = rows_at(value, pages, number, start, value_group, value_row)
        v = value_tile(values, lane, column, value_row, left, readable)
        mean = tl.dot(weight.to(v.dtype), v, mean * shrink[:, None], input_precision="ieee")
        peak = higher

    inside = (row < queries)[:, None] & (column < value_channels)[None, :]
    out += ((group * sets + which) * queries + top) * value_channels
    place = tl.arange(0, ROWS)[:, None] * value_channels + column[None, :]
    if PARTED:
        if part * size < end:
            out += part.to(tl.int64) * groups * sets * queries * value_channels
            tl.store(out + place, mean, mask=inside)
            if block == 0:
                line = (part.to(tl.int64) * groups + group) * queries + row
                tl.store(peaks + line, peak, mask=row < queries)
                tl.store(sums + line, total, mask=row < queries)
    else:
        mean /= tl.where(end > 0, total, 1.0)[:, None]
        tl.store(out + place, mean.to(out.dtype.element_ty), mask=inside)


@triton.jit
def find_peaks(
    query, key, bias, length, peaks, pages, query_of,
    query_group, query_row, key_group, key_row, bias_group, bias_row,
    queries, positions, key_channels, groups, parts, scale,
    query_count, page_count, columns, page, padded,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Compute the maximum score of every query in every part: peaks [parts, G, P]."""
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
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    for first in range(part * size, stop, BLOCK_N):
        number, start, left = block_at(pages, page_count, columns, group, first, end, page, padded)
        score = scores(
            q0, q1, query, key, bias, None, row, pages, number, start, left,
            query_row, key_group, key_row, bias_group, bias_row, queries, key_channels, scale,
            ROWS, BLOCK_N, BLOCK_C, CHUNKS,
        )  # fmt: skip
        peak = tl.maximum(peak, tl.max(score, 1))
    if part * size < end:
        line = (part.to(tl.int64) * groups + group) * queries + row
        tl.store(peaks + line, peak, mask=row < queries)


@triton.jit
def weigh(
    query, key, bias, length, threshold, peaks, weights, sums, pages, query_of,
    query_group, query_row, key_group, key_row, bias_group, bias_row, weight_row,
    queries, positions, key_channels, groups, parts, scale,
    query_count, page_count, columns, page, padded,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Compute weights [G, P, weight_row] = exp(score - maximum score of the query), 0 up to the end
    of the last block, and their sums [parts, G, P]. Reads the peaks of `find_peaks`, with the same
    parts."""
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
    limit = None
    if threshold is not None:
        padding = float("-inf")
        limit = tl.load(threshold + group * queries + row, mask=row < queries, other=padding)
    inside = row < queries
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    for other in range(live_parts(end, parts, BLOCK_N)):
        line = (other * groups + group) * queries + row
        peak = tl.maximum(peak, tl.load(peaks + line, mask=inside, other=0.0))
    level = finite(peak)

    q0, q1 = held_queries(query, row, query_row, queries, key_channels, BLOCK_C, CHUNKS)
    place = (group * queries + row)[:, None] * weight_row + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros([ROWS], tl.float32)
    for first in range(part * size, stop, BLOCK_N):
        number, start, left = block_at(pages, page_count, columns, group, first, end, page, padded)
        score = scores(
            q0, q1, query, key, bias, limit, row, pages, number, start, left,
            query_row, key_group, key_row, bias_group, bias_row, queries, key_channels, scale,
            ROWS, BLOCK_N, BLOCK_C, CHUNKS,
        )  # fmt: skip
        weight = tl.exp2(score - level[:, None])
        total += tl.sum(weight, 1)
        tl.store(weights + first + place, weight.to(weights.dtype.element_ty), mask=inside[:, None])
    if part * size < end:
        line = (part.to(tl.int64) * groups + group) * queries + row
        tl.store(sums + line, total, mask=inside)


@triton.jit
def _total(sums, line, lines, live, inside, ROWS: tl.constexpr):
    """Return the sum over parts of sums [parts, lines]."""
    total = tl.zeros([ROWS], tl.float32)
    for part in range(live):
        total += tl.load(sums + part * lines + line, mask=inside, other=1.0)
    return total


@triton.jit
def mix(
    weights, value, length, sums, out, pages,
    value_group, value_set, value_row, weight_row,
    queries, positions, value_channels, readable, groups, sets, parts, weigh_parts,
    page_count, columns, page, padded,
    PARTED: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
    WEIGH_N: tl.constexpr,
):  # fmt: skip
    """Multiply stored weights with values and divide by the sum of weights; if PARTED, undivided
    products in float32. Programs as in `read_part`. BLOCK_N divides that of `weigh`, so that every
    weight of a tile has been written."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(queries, ROWS)
    value_blocks = tl.cdiv(value_channels, BLOCK_V)
    top = program % row_blocks * ROWS
    row = top + tl.arange(0, ROWS)
    block = program // row_blocks % (sets * value_blocks)
    rest = program // (row_blocks * sets * value_blocks)
    part = rest % parts
    group = (rest // parts).to(tl.int64)
    which, column = block // value_blocks, block % value_blocks * BLOCK_V + tl.arange(0, BLOCK_V)

    end = end_of(length, group, positions, page, padded)
    size = part_size(end, parts, BLOCK_N)
    stop = tl.minimum((part + 1) * size, end)
    line = group * queries + row
    inside = row < queries
    weights += line[:, None] * weight_row
    value = memory_of_group(value, pages, group, value_group) + which.to(tl.int64) * value_set
    mean = tl.zeros([ROWS, BLOCK_V], tl.float32)
    lane = tl.arange(0, BLOCK_N)
    for first in range(part * size, stop, BLOCK_N):
        number, start, left = block_at(pages, page_count, columns, group, first, end, page, padded)
        weight = tl.load(weights + first + lane[None, :], mask=inside[:, None], other=0.0)
        values = rows_at(value, pages, number, start, value_group, value_row)
        v = value_tile(values, lane, column, value_row, left, readable)
        mean = tl.dot(weight, v, mean, input_precision="ieee")

    known = inside[:, None] & (column < value_channels)[None, :]
    out += ((group * sets + which) * queries + top) * value_channels
    place = tl.arange(0, ROWS)[:, None] * value_channels + column[None, :]
    if PARTED:
        if part * size < end:
            out += part.to(tl.int64) * groups * sets * queries * value_channels
            tl.store(out + place, mean, mask=known)
    else:
        live = live_parts(end, weigh_parts, WEIGH_N)
        total = _total(sums, line, groups * queries, live, inside, ROWS)
        mean /= tl.where(end > 0, total, 1.0)[:, None]
        tl.store(out + place, mean.to(out.dtype.element_ty), mask=known)


@triton.jit
def merge(
    parted, peaks, sums, length, out,
    queries, positions, value_channels, groups, sets, parts, sum_parts, page, padded,
    ROWS: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr, SUM_N: tl.constexpr,
):  # fmt: skip
    """Merge the parts of `read_part` (with peaks) or of `mix` (without)."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(queries, ROWS)
    value_blocks = tl.cdiv(value_channels, BLOCK_V)
    row = program % row_blocks * ROWS + tl.arange(0, ROWS)
    column = program // row_blocks % value_blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    frame = (program // (row_blocks * value_blocks)).to(tl.int64)
    group = frame // sets

    end = end_of(length, group, positions, page, padded)
    live = live_parts(end, parts, BLOCK_N)
    inside = row < queries
    known = inside[:, None] & (column < value_channels)[None, :]
    place = (frame * queries + row)[:, None] * value_channels + column[None, :]
    stride = tl.cast(groups, tl.int64) * sets * queries * value_channels
    line = group * queries + row
    lines = groups * queries

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    if peaks is not None:
        for part in range(live):
            peak = tl.maximum(peak, tl.load(peaks + part * lines + line, mask=inside, other=0.0))
    level = finite(peak)
    mean = tl.zeros([ROWS, BLOCK_V], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for part in range(live):
        share = tl.load(parted + part * stride + place, mask=known, other=0.0)
        if peaks is not None:
            its_peak = tl.load(peaks + part * lines + line, mask=inside, other=0.0)
            factor = tl.exp2(its_peak - level)
            total += factor * tl.load(sums + part * lines + line, mask=inside, other=1.0)
            share *= factor[:, None]
        mean += share
    if peaks is None:
        total = _total(sums, line, lines, live_parts(end, sum_parts, SUM_N), inside, ROWS)
    mean /= tl.where(end > 0, total, 1.0)[:, None]
    tl.store(out + place, mean.to(out.dtype.element_ty), mask=known)
