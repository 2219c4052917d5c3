"""Packing of vectors with any strides for tensor cores: channels last, padded, with norms.

One launch reads both maps once and writes them contiguously, so that the kernels that follow load
16 bytes at a time in every layout, need no channel mask, and use norms computed once instead of
once per tile. Values are copied without rounding. Not yet timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch

from ..gpu import tl, triton
from ..resources import CHIPS, Build

CELLS = 32  # vectors per program: two sectors of a channels-first row of float16
CHANNELS = 256  # per step
WARPS = 8


@triton.jit
def _pack_block(
    source,
    packed,
    norms,
    batch_stride,
    channel_stride,
    row_stride,
    cell_stride,
    channels,
    cells,
    width,
    image,
    first_row,
    FLAT: tl.constexpr,
    PADDED: tl.constexpr,
    CELLS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    inside = cell < cells
    if FLAT:
        offset = cell.to(tl.int64) * cell_stride
    else:
        offset = (cell // width).to(tl.int64) * row_stride + (cell % width) * cell_stride
    source += image.to(tl.int64) * batch_stride
    row = first_row + image.to(tl.int64) * cells + cell
    squares = tl.zeros((CELLS,), tl.float32)
    for start in range(0, PADDED, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        valid = inside[:, None] & (channel < channels)[None, :]
        at = offset[:, None] + channel.to(tl.int64)[None, :] * channel_stride
        value = tl.load(source + at, mask=valid, other=0)
        wide = value.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        tl.store(packed + row[:, None] * PADDED + channel[None, :], value, mask=inside[:, None])
    tl.store(norms + row, tl.sqrt(squares), mask=inside)


@triton.jit
def _pack(
    first,
    second,
    packed,
    norms,
    first_batch_stride,
    first_channel_stride,
    first_row_stride,
    first_cell_stride,
    second_batch_stride,
    second_channel_stride,
    second_row_stride,
    second_cell_stride,
    channels,
    first_batch,
    first_cells,
    first_width,
    second_cells,
    second_width,
    FIRST_FLAT: tl.constexpr,
    SECOND_FLAT: tl.constexpr,
    PADDED: tl.constexpr,
    CELLS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """packed[row] and norms[row] of the vectors of `first`, then of those of `second`.

    Program (i, j) packs block i of image j; images of `second` follow those of `first`.
    """
    image = tl.program_id(1)
    if image < first_batch:
        _pack_block(
            first, packed, norms, first_batch_stride, first_channel_stride, first_row_stride,
            first_cell_stride, channels, first_cells, first_width, image, 0,
            FIRST_FLAT, PADDED, CELLS, CHUNK,
        )  # fmt: skip
    else:
        _pack_block(
            second, packed, norms, second_batch_stride, second_channel_stride, second_row_stride,
            second_cell_stride, channels, second_cells, second_width, image - first_batch,
            first_batch * first_cells,
            SECOND_FLAT, PADDED, CELLS, CHUNK,
        )  # fmt: skip


def padded_channels(channels: int, chunk: int = CHANNELS) -> int:
    """Round channels up to a power of two, at least 16; above `chunk` to a multiple of it."""
    if channels > chunk:
        return -(-channels // chunk) * chunk
    return max(16, 1 << (channels - 1).bit_length())


def pack_vectors(
    first: torch.Tensor, second: torch.Tensor, padded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the vectors of two maps and compute their norms.

    first    [B, C, h, w]  any strides
    second   [B', C, h', w']  any strides, dtype of first
    padded   row length of the result, see padded_channels
    returns  packed [rows, padded]  the vectors of `first` in the order (b, y, x), then those of
                                    `second`, padded with zeros after C channels; dtype of first
             norms  [rows] float32  their Euclidean norms
    """
    rows = sum(x.shape[0] * x.shape[2] * x.shape[3] for x in (first, second))
    packed = torch.empty(rows, padded, dtype=first.dtype, device=first.device)
    norms = torch.empty(rows, dtype=torch.float32, device=first.device)
    cells = [x.shape[2] * x.shape[3] for x in (first, second)]
    grid = (-(-max(cells) // CELLS), first.shape[0] + second.shape[0])
    _pack[grid](
        first,
        second,
        packed,
        norms,
        *first.stride(),
        *second.stride(),
        first.shape[1],
        first.shape[0],
        cells[0],
        first.shape[3],
        cells[1],
        second.shape[3],
        **_constants(_is_flat(first), _is_flat(second), padded),
        num_warps=WARPS,
        num_stages=1,
    )
    return packed, norms


def _is_flat(x: torch.Tensor) -> bool:
    """Return whether one stride leads from every cell to the next, across rows as well."""
    return x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def _constants(first_flat: bool, second_flat: bool, padded: int) -> dict[str, Any]:
    return {
        "FIRST_FLAT": first_flat,
        "SECOND_FLAT": second_flat,
        "PADDED": padded,
        "CELLS": CELLS,
        "CHUNK": min(CHANNELS, padded),
    }


def pack_builds(channels: int) -> tuple[Build, ...]:
    """Builds for ops with this many channels: channels first, and channels last in bfloat16."""
    return (
        _build("*bf16", channels, ones=_CELL_STRIDES),
        _build("*fp32", channels, ones=_CELL_STRIDES),
        _build("*bf16", channels, ones=_CHANNEL_STRIDES),
    )


def _build(element: str, channels: int, ones: tuple[str, str]) -> Build:
    layout = "channels first" if ones == _CELL_STRIDES else "channels last"
    even = ("channels", *_BATCH_STRIDES, *(_CELL_STRIDES if ones == _CHANNEL_STRIDES else ()))
    return Build(
        name=f"pack {_TYPES[element]} {channels} {layout}",
        kernel=_pack,
        signature={
            **dict.fromkeys(("first", "second", "packed"), element),
            "norms": "*fp32",
            **{name: "i32" for name in _INTEGERS if name not in ones},
        },
        constants={
            **dict.fromkeys(ones, 1),
            **_constants(True, True, padded_channels(channels)),
        },
        warps=WARPS,
        stages=1,
        chips=CHIPS,
        matrix=False,
        divisible=even,
    )


_TYPES = {"*bf16": "bfloat16", "*fp32": "float32"}
_BATCH_STRIDES = ("first_batch_stride", "second_batch_stride")
_CHANNEL_STRIDES = ("first_channel_stride", "second_channel_stride")
_CELL_STRIDES = ("first_cell_stride", "second_cell_stride")
_INTEGERS = (
    *_BATCH_STRIDES,
    *_CHANNEL_STRIDES,
    *("first_row_stride", "second_row_stride"),
    *_CELL_STRIDES,
    *("channels", "first_batch", "first_cells", "first_width", "second_cells", "second_width"),
)
