"""Shared functions of the Triton programs of `read_memory`: blocks of memory and their scores.

Scores are scaled by log2(e), so that weights are exp2 of them. The length of a group is read on the
device; loads past it are masked. A memory is split into `parts` of equal length, also computed on
the device. A part may be empty: its programs write nothing, and its outputs are not read.

With pages, positions are counted as if a page had length `padded`, a multiple of every block size,
instead of `page`. A block then never spans two pages, and needs one page number.
"""

# mypy: ignore-errors
from __future__ import annotations

from ..gpu import tl, triton


@triton.jit
def end_of(length, group, positions, page, padded):
    """Return the end of a group's positions."""
    end = positions
    if length is not None:
        end = tl.minimum(tl.maximum(tl.load(length + group), 0), positions)
    if padded is not None:
        end = end // page * padded + end % page
    return end


@triton.jit
def query_of_group(query, query_of, query_count, group, query_group):
    """Return the pointer to the queries of a group."""
    source = group
    if query_of is not None:
        source = tl.load(query_of + group)
        source = tl.minimum(tl.maximum(source, 0), query_count - 1).to(tl.int64)
    return query + source * query_group


@triton.jit
def memory_of_group(memory, pages, group, group_stride):
    """Return the pointer to a group's keys, values or biases; with pages, to the pool."""
    if pages is None:
        memory += group * group_stride
    return memory


@triton.jit
def block_at(pages, page_count, columns, group, first, end, page, padded):
    """Return (page number, row in the page, valid rows from there on) of the block at `first`;
    without pages the group is one page, whose number is not read."""
    number, row, left = group, first, end - first
    if pages is not None:
        column = first // padded
        row = first - column * padded
        left = tl.minimum(left, page - row)
        number = tl.load(pages + group * columns + column)
        number = tl.minimum(tl.maximum(number, 0), page_count - 1).to(tl.int64)
    return number, row, left


@triton.jit
def rows_at(memory, pages, number, row, page_stride, row_stride):
    """Return the pointer to the rows of a block."""
    if pages is not None:
        memory += number * page_stride
    return memory + tl.cast(row, tl.int64) * row_stride


@triton.jit
def part_size(end, parts, BLOCK_N: tl.constexpr):
    return tl.cdiv(tl.cdiv(end, BLOCK_N), parts) * BLOCK_N


@triton.jit
def live_parts(end, parts, BLOCK_N: tl.constexpr):
    """Return how many parts of a group are not empty."""
    return tl.cdiv(end, tl.maximum(part_size(end, parts, BLOCK_N), 1))


@triton.jit
def finite(level):
    """Replace a maximum of -inf (no positions), which cannot be subtracted."""
    return tl.where(level == float("-inf"), 0.0, level)


@triton.jit
def _query_tile(query, row, channel, query_row, queries, key_channels):
    inside = (row < queries)[:, None] & (channel < key_channels)[None, :]
    place = row.to(tl.int64)[:, None] * query_row + channel[None, :]
    return tl.load(query + place, mask=inside, other=0.0)


@triton.jit
def _key_tile(key, lane, channel, key_row, left, key_channels):
    """Load a tile of keys [channels, positions], 0 from position `left` on."""
    inside = (lane < left)[None, :] & (channel < key_channels)[:, None]
    return tl.load(key + (lane * key_row)[None, :] + channel[:, None], mask=inside, other=0.0)


@triton.jit
def value_tile(value, lane, column, value_row, left, readable):
    """Load a tile of values [positions, columns], 0 from position `left` on (0 * NaN is NaN)."""
    inside = (lane < left)[:, None] & (column < readable)[None, :]
    place = (lane * value_row)[:, None] + column[None, :]
    return tl.load(value + place, mask=inside, other=0.0)


@triton.jit
def held_queries(
    query, row, query_row, queries, key_channels, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):
    """Load the first two channel chunks of the queries; more chunks are loaded per block."""
    channel = tl.arange(0, BLOCK_C)
    q0 = _query_tile(query, row, channel, query_row, queries, key_channels)
    q1 = q0
    if CHUNKS == 2:
        q1 = _query_tile(query, row, BLOCK_C + channel, query_row, queries, key_channels)
    return q0, q1


@triton.jit
def scores(
    q0, q1, query, key, bias, limit, row, pages, number, start, left,
    query_row, key_group, key_row, bias_group, bias_row, queries, key_channels, scale,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Return scores [rows, positions] float32 of the block at row `start` of a page; -inf from
    position `left` on, and for scores below a row's limit."""
    channel = tl.arange(0, BLOCK_C)
    lane = tl.arange(0, BLOCK_N)
    alive = lane < left
    key = rows_at(key, pages, number, start, key_group, key_row)
    product = tl.zeros([ROWS, BLOCK_N], tl.float32)
    if CHUNKS <= 2:
        k = _key_tile(key, lane, channel, key_row, left, key_channels)
        product = tl.dot(q0, k, product, input_precision="ieee")
        if CHUNKS == 2:
            k = _key_tile(key, lane, BLOCK_C + channel, key_row, left, key_channels)
            product = tl.dot(q1, k, product, input_precision="ieee")
    else:
        for chunk in range(CHUNKS):
            here = chunk * BLOCK_C + channel
            q = _query_tile(query, row, here, query_row, queries, key_channels)
            k = _key_tile(key, lane, here, key_row, left, key_channels)
            product = tl.dot(q, k, product, input_precision="ieee")
    added = tl.zeros([BLOCK_N], tl.float32)
    if bias is not None:
        bias = rows_at(bias, pages, number, start, bias_group, bias_row)
        added = tl.load(bias + lane * bias_row, mask=alive, other=0.0).to(tl.float32)
    added = tl.where(alive, added * 1.4426950408889634, float("-inf"))
    score = tl.fma(product, scale, added[None, :])
    if limit is not None:
        score = tl.where(score < limit[:, None], float("-inf"), score)  # NaN is kept
    return score
