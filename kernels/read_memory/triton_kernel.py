"""`read_memory` in Triton: flash attention in one pass, or products with weights stored once.

Up to two blocks of 256 value channels (usually there are 128 key and 512 value channels) use flash
attention: an online softmax, no scores stored, scores recomputed for each block. More blocks
(several sets, or wide values) share weights that are computed once: the maximum score of each
query, then exp(score - maximum) in the dtype of the call, then one product with all values. This
stores [G, P, N] weights; if they exceed 512 MiB, the one-pass form runs instead. Memory is split
into parts if there are too few queries for all multiprocessors (split-K); the partial outputs,
`parts` times the output in float32, are merged at the end.

top_k: an additional pass over the keys keeps each query's greatest scores in registers, at most 32;
the least of them is the threshold. Later passes compute scores in the same tiles and so bitwise
equal. Values are still read completely: weights below the threshold are zero.

Supports float16, bfloat16 (tensor cores, float32 accumulation) and float32 (FMAs, full precision),
any strides with a contiguous last axis, top_k up to 32. Rows that do not start at multiples of 16
elements are read element by element, which is slow. Deterministic. Not yet timed on a GPU.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from ..gpu import for_chip, on_its_device, triton_unsupported
from . import triton_programs as programs
from . import triton_top_k as top_k_programs
from .triton_builds import builds
from .triton_plan import (
    CONFIGS,
    FLOAT32,
    MERGED,
    MOST_KEPT,
    SETTLED,
    Shape,
    Tile,
    ceil_div,
    merge_constants,
    mix_constants,
    plan_of,
    power_of_two,
    read_constants,
    score_constants,
    settle_constants,
)

__all__ = ["builds", "run", "unsupported"]

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

FAR = 2**24  # maximum row stride: offsets within a tile are 32-bit


def unsupported(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    top_k: int | None = None,
    pages: torch.Tensor | None = None,
    query_of: torch.Tensor | None = None,
    **_: Any,
) -> str | None:
    if query_key.dtype not in DTYPES:
        return f"wants float16, bfloat16 or float32, given {query_key.dtype}"
    rows = {"query_key": query_key, "memory_key": memory_key, "memory_value": memory_value}
    for name, tensor in rows.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"wants the last axis of {name} contiguous, given stride {tensor.stride(-1)}"
        if tensor.stride(-2) >= FAR and tensor.shape[-2] > 1:
            return f"wants rows of {name} less than {FAR} elements apart"
    positions = memory_key.shape[1] if pages is None else pages.shape[1] * memory_key.shape[1]
    if top_k is not None and MOST_KEPT < top_k < positions:
        return f"wants top_k up to {MOST_KEPT}, given {top_k}"
    return triton_unsupported(query_key, memory_key, memory_value, bias, length, pages, query_of)


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 6
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@on_its_device
def run(
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
    groups, columns = (len(memory_key), 1) if pages is None else pages.shape
    if query_of is None:
        query_key = query_key.expand(groups, -1, -1)
    queries, value_channels = query_key.shape[1], memory_value.shape[-1]
    out = query_key.new_empty(groups, *memory_value.shape[1:-2], queries, value_channels)
    if out.numel() == 0:
        return out
    if top_k is not None and top_k >= columns * memory_key.shape[1]:
        top_k = None
    length, pages, query_of = (
        None if numbers is None else numbers.contiguous() for numbers in (length, pages, query_of)
    )
    call = _Call(
        query_key, memory_key, memory_value, scale, bias, length, top_k, pages, query_of, out
    )
    threshold = None if top_k is None else call.threshold(top_k)
    if call.plan.stored:
        call.read_by_weights(threshold)
    else:
        call.read_in_one_pass(threshold)
    return out


class _Call:
    """Arguments of one call, prepared for its programs, and the launches."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        bias: torch.Tensor | None,
        length: torch.Tensor | None,
        top_k: int | None,
        pages: torch.Tensor | None,
        query_of: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        groups, (page_count, page, key_channels) = len(out), key.shape
        columns = 1 if pages is None else pages.shape[1]
        value = value if value.ndim == 4 else value[:, None]
        self.shape = Shape(
            groups,
            value.shape[1],
            query.shape[1],
            columns * page,
            key_channels,
            value.shape[3],
            query.itemsize,
        )
        config = FLOAT32 if out.dtype == torch.float32 else for_chip(CONFIGS, out.device)
        self.plan = plan_of(self.shape, config, _processors(out.device), top_k=top_k is not None)
        self.out = out
        block = self.plan.scoring.positions
        padded = ceil_div(page, block) * block
        self.reach = columns * padded  # positions of a group, each page rounded up to blocks
        self.common: dict[str, Any] = {
            "length": length,
            "queries": query.shape[1],
            "positions": columns * page,
            "groups": groups,
            "page": None if pages is None else page,
            "padded": None if pages is None else padded,
        }
        self.pages: dict[str, Any] = {
            "pages": pages,
            "page_count": None if pages is None else page_count,
            "columns": None if pages is None else columns,
        }
        self.keys: dict[str, Any] = {
            **self.pages,
            "query": query,
            "query_of": query_of,
            "query_count": None if query_of is None else len(query),
            "key": key,
            "bias": bias,
            "query_group": query.stride(0),
            "query_row": query.stride(1),
            "key_group": key.stride(0),
            "key_row": key.stride(1),
            "bias_group": 0 if bias is None else bias.stride(0),
            "bias_row": 0 if bias is None else bias.stride(1),
            "key_channels": key_channels,
            "scale": scale * math.log2(math.e),
        }
        self.values: dict[str, Any] = {
            **self.pages,
            "value": value,
            "value_group": value.stride(0),
            "value_set": value.stride(1),
            "value_row": value.stride(2),
            "value_channels": value.shape[3],
            "readable": readable(value),
            "sets": value.shape[1],
        }

    def _scratch(self, *sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device=self.out.device)

    def _lines(self, parts: int, *more: int) -> torch.Tensor:
        return self._scratch(parts, self.shape.groups, self.shape.queries, *more)

    def threshold(self, top_k: int) -> torch.Tensor:
        """Return the top_k-th greatest score of every query, [G, P]."""
        plan, kept = self.plan, power_of_two(2, top_k, MOST_KEPT)
        best = self._lines(plan.score_parts, kept)
        threshold = self._lines(1)
        launch(
            top_k_programs.find_best,
            plan.score_programs,
            plan.scoring,
            score_constants(plan) | {"KEPT": kept},
            **self.common,
            **self.keys,
            best=best,
            parts=plan.score_parts,
            top_k=top_k,
        )
        launch(
            top_k_programs.find_threshold,
            self.shape.groups * ceil_div(self.shape.queries, SETTLED.rows),
            SETTLED,
            settle_constants(plan) | {"KEPT": kept},
            **self.common,
            best=best,
            threshold=threshold,
            parts=plan.score_parts,
            top_k=top_k,
        )
        return threshold

    def read_in_one_pass(self, threshold: torch.Tensor | None) -> None:
        plan = self.plan
        parted = plan.parts > 1
        out = self._scratch(plan.parts, *self.out.shape) if parted else self.out
        peaks, sums = (self._lines(plan.parts) if parted else None for _ in range(2))
        launch(
            programs.read_part,
            plan.programs,
            plan.reading,
            read_constants(plan),
            **self.common,
            **(self.keys | self.values),
            threshold=threshold,
            out=out,
            peaks=peaks,
            sums=sums,
            parts=plan.parts,
        )
        if parted:
            self._merge(out, peaks, sums, plan.parts)

    def read_by_weights(self, threshold: torch.Tensor | None) -> None:
        plan = self.plan
        parted = plan.parts > 1
        weight_row = self.reach
        weights = self._scratch(
            self.shape.groups, self.shape.queries, weight_row, dtype=self.out.dtype
        )
        peaks, sums = (self._lines(plan.score_parts) for _ in range(2))
        score = {**self.common, **self.keys, "parts": plan.score_parts, "peaks": peaks}
        constants = score_constants(plan)
        tile = plan.scoring
        launch(programs.find_peaks, plan.score_programs, tile, constants, **score)
        launch(
            programs.weigh,
            plan.score_programs,
            tile,
            constants,
            **score,
            threshold=threshold,
            weights=weights,
            weight_row=weight_row,
            sums=sums,
        )
        out = self._scratch(plan.parts, *self.out.shape) if parted else self.out
        launch(
            programs.mix,
            plan.programs,
            plan.reading,
            mix_constants(plan),
            **self.common,
            **self.values,
            weights=weights,
            weight_row=weight_row,
            sums=sums,
            out=out,
            parts=plan.parts,
            weigh_parts=plan.score_parts,
        )
        if parted:
            self._merge(out, None, sums, plan.score_parts)

    def _merge(
        self,
        parted: torch.Tensor,
        peaks: torch.Tensor | None,
        sums: torch.Tensor | None,
        sum_parts: int,
    ) -> None:
        launch(
            programs.merge,
            self.plan.merge_programs,
            MERGED,
            merge_constants(self.plan),
            **self.common,
            parted=parted,
            peaks=peaks,
            sums=sums,
            out=self.out,
            value_channels=self.shape.value_channels,
            sets=self.shape.sets,
            parts=self.plan.parts,
            sum_parts=sum_parts,
        )


def readable(value: torch.Tensor) -> int:
    """Return up to which channel rows may be loaded: the next multiple of 16, for wide loads, if
    every row is that long; channels beyond Cv are loaded but never stored."""
    channels, row = value.shape[3], value.stride(2)
    wide = ceil_div(channels, 16) * 16
    reach = sum((n - 1) * step for n, step in zip(value.shape[:3], value.stride()[:3], strict=True))
    room = value.untyped_storage().nbytes() // value.itemsize - value.storage_offset() - reach
    return wide if row % 16 == 0 and wide <= min(row, room) else channels


def launch(
    kernel: Any, count: int, tile: Tile, constants: dict[str, Any], **arguments: Any
) -> None:
    kernel[(count,)](**arguments, **constants, num_warps=tile.warps, num_stages=tile.stages)
