"""`read_memory` in Triton: softmax and weighted mean in one pass, or by weights stored once.

Up to two blocks of 256 value channels (the usual pair is 128 key and 512 value channels) are read
as flash attention reads: a running maximum, no score ever stored, the scores computed anew for each
block. More blocks (several sets, or wide values) share weights that are computed once: the greatest
score of each query, then exp(score - it) in the dtype of the call, then one product with all
values. That stores [G, P, N] weights; where they would pass 512 MiB the one pass runs instead.
Memory is cut into parts when there are too few queries for all multiprocessors; what the parts
read, `parts` times the output in float32, is merged at the end.

top_k: one more pass over the keys keeps lists of each query's greatest scores in registers, 32 at
most; their least is the threshold. Every later pass computes the scores in the same tiles and so to
the same bits. Values are still read whole: weights below the threshold become zero.

Takes float16, bfloat16 (matrix units, float32 sums) and float32 (scalar units, full precision) and
any strides with a contiguous last axis; objects to float64 and to a top_k above 32. Rows that do
not start at multiples of 16 elements are read element by element, which is slow. Deterministic.
Not yet timed on a GPU.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from ..gpu import for_chip, on_its_device, triton_objection
from ..resources import Build
from . import triton_programs as programs
from . import triton_top_k as top_k_programs
from .triton_plan import (
    CONFIGS,
    FLOAT32,
    MERGED,
    MOST_KEPT,
    SETTLED,
    Config,
    Plan,
    Shape,
    Tile,
    ceil_div,
    plan_of,
    power_of_two,
)

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

FAR = 2**24  # between rows: what lies within a tile is addressed in 32 bits


def objection(
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
) -> str | None:
    if query_key.dtype not in DTYPES:
        return f"wants float16, bfloat16 or float32, given {query_key.dtype}"
    rows = {"query_key": query_key, "memory_key": memory_key, "memory_value": memory_value}
    for name, tensor in rows.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"wants the last axis of {name} contiguous, given stride {tensor.stride(-1)}"
        if tensor.stride(-2) >= FAR and tensor.shape[-2] > 1:
            return f"wants rows of {name} less than {FAR} elements apart"
    if top_k is not None and MOST_KEPT < top_k < memory_key.shape[1]:
        return f"wants top_k up to {MOST_KEPT}, given {top_k}"
    if pages is not None or query_of is not None:
        return "does not read memory in pages yet"
    return triton_objection(query_key, memory_key, memory_value, bias, length)


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
    query_key = query_key.expand(len(memory_key), -1, -1)
    queries, value_channels = query_key.shape[1], memory_value.shape[-1]
    out = memory_value.new_empty(*memory_value.shape[:-2], queries, value_channels)
    if out.numel() == 0:
        return out
    if top_k is not None and top_k >= memory_key.shape[1]:
        top_k = None
    call = _Call(query_key, memory_key, memory_value, scale, bias, length, top_k, out)
    threshold = None if top_k is None else call.threshold(top_k)
    if call.plan.stored:
        call.read_by_weights(threshold)
    else:
        call.read_in_one_pass(threshold)
    return out


class _Call:
    """One call's arguments as its programs want them, and its launches."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        bias: torch.Tensor | None,
        length: torch.Tensor | None,
        top_k: int | None,
        out: torch.Tensor,
    ) -> None:
        groups, positions, key_channels = key.shape
        value = value if value.ndim == 4 else value[:, None]
        self.shape = Shape(
            groups,
            value.shape[1],
            query.shape[1],
            positions,
            key_channels,
            value.shape[3],
            query.itemsize,
        )
        config = FLOAT32 if out.dtype == torch.float32 else for_chip(CONFIGS, out.device)
        self.plan = plan_of(self.shape, config, _processors(out.device), top_k=top_k is not None)
        self.out = out
        self.common: dict[str, Any] = {
            "length": None if length is None else length.contiguous(),
            "queries": query.shape[1],
            "positions": positions,
            "groups": groups,
        }
        self.keys: dict[str, Any] = {
            "query": query,
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
        """[G, P]: the top_k-th greatest score of every query."""
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
            **self.keys,
            **self.values,
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
        weight_row = ceil_div(self.shape.positions, plan.scoring.positions) * plan.scoring.positions
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
    """Up to which channel rows may be read: to the next multiple of 16 where every row has room for
    that, so that loads are wide; what the channels beyond hold is never stored."""
    channels, row = value.shape[3], value.stride(2)
    wide = ceil_div(channels, 16) * 16
    reach = sum((n - 1) * step for n, step in zip(value.shape[:3], value.stride()[:3], strict=True))
    room = value.untyped_storage().nbytes() // value.itemsize - value.storage_offset() - reach
    return wide if row % 16 == 0 and wide <= min(row, room) else channels


def launch(
    kernel: Any, count: int, tile: Tile, constants: dict[str, Any], **arguments: Any
) -> None:
    kernel[(count,)](**arguments, **constants, num_warps=tile.warps, num_stages=tile.stages)


def score_constants(plan: Plan) -> dict[str, Any]:
    tile = plan.scoring
    return {
        "ROWS": tile.rows,
        "BLOCK_N": tile.positions,
        "BLOCK_C": plan.chunk,
        "CHUNKS": plan.chunks,
    }


def read_constants(plan: Plan) -> dict[str, Any]:
    return score_constants(plan) | {"PARTED": plan.parts > 1, "BLOCK_V": plan.reading.columns}


def mix_constants(plan: Plan) -> dict[str, Any]:
    tile = plan.reading
    return {
        "PARTED": plan.parts > 1,
        "ROWS": tile.rows,
        "BLOCK_N": tile.positions,
        "BLOCK_V": tile.columns,
        "WEIGH_N": plan.scoring.positions,
    }


def merge_constants(plan: Plan) -> dict[str, Any]:
    return {
        "ROWS": MERGED.rows,
        "BLOCK_V": MERGED.columns,
        "BLOCK_N": plan.reading.positions,
        "SUM_N": plan.scoring.positions,
    }


def settle_constants(plan: Plan) -> dict[str, Any]:
    return {"ROWS": SETTLED.rows, "BLOCK_N": plan.scoring.positions}


def builds() -> tuple[Build, ...]:
    """Every program as the tuning tables launch it, for 480p: the usual memory of 128 key and 512
    value channels, several sets of values, and DMN-AOA's references (256 and many)."""
    configs: dict[Config, list[int]] = {}
    for chip, config in CONFIGS.items():
        configs.setdefault(config, []).append(chip)
    every = tuple(CONFIGS)
    found = [b for config, chips in configs.items() for b in _builds(config, "bf16", tuple(chips))]
    return (*found, *_builds(FLOAT32, "fp32", every))


def _builds(config: Config, kind: str, chips: tuple[int, ...]) -> list[Build]:
    size = 4 if kind == "fp32" else 2
    shape = Shape(3, 1, 1620, 32400, 128, 512, size)
    usual = plan_of(shape, config, 132)
    best = plan_of(shape, config, 132, top_k=True)
    sets = plan_of(Shape(1, 6, 1620, 8100, 128, 512, size), config, 132)
    wide = plan_of(Shape(2, 1, 1620, 1620, 256, 2879, size), config, 132)
    kept = {"KEPT": MOST_KEPT}

    def build(
        name: str, kernel: Any, tile: Tile, constants: dict[str, Any], *, matrix: bool = True
    ) -> Build:
        names = kernel.arg_names
        signature = {n: _type_of(n, kind, constants) for n in names if n not in constants}
        return Build(
            name=f"{name} {kind} {tile.rows}x{tile.positions}x{tile.columns}, sm_{chips[0]}",
            kernel=kernel,
            signature=signature,
            constants=constants,
            warps=tile.warps,
            stages=tile.stages,
            chips=chips,
            matrix=matrix and kind != "fp32",
            divisible=tuple(n for n in names if n in DIVISIBLE and n not in constants),
        )

    read, without = programs.read_part, {"threshold": None}
    unbiased = {"bias": None, "bias_group": 0, "bias_row": 0}
    found = [
        build("read", read, usual.reading, read_constants(usual) | without | unbiased),
        build("read, bias and top_k", read, best.reading, read_constants(best)),
        build("best", top_k_programs.find_best, best.scoring, score_constants(best) | kept),
        build("peaks", programs.find_peaks, sets.scoring, score_constants(sets)),
        build("weigh", programs.weigh, sets.scoring, score_constants(sets)),
        build("mix", programs.mix, sets.reading, mix_constants(sets)),
    ]
    if kind != "fp32":
        settled = settle_constants(best) | kept
        found += [
            build("read, bias", read, usual.reading, read_constants(usual) | without),
            build("weigh, 256 channels", programs.weigh, wide.scoring, score_constants(wide)),
            build("merge", programs.merge, MERGED, merge_constants(usual), matrix=False),
            build("threshold", top_k_programs.find_threshold, SETTLED, settled, matrix=False),
        ]
    return found


# Multiples of 16 in real use; numbers of queries, of positions and of parts are not.
DIVISIBLE = (
    *("query_group", "query_row", "key_group", "key_row", "key_channels", "weight_row"),
    *("value_group", "value_set", "value_row", "value_channels", "readable"),
)
FLOATS = ("bias", "threshold", "peaks", "sums", "parted", "best")


def _type_of(name: str, kind: str, constants: dict[str, Any]) -> str:
    if name in FLOATS or (name == "out" and constants.get("PARTED")):
        return "*fp32"
    if name in ("query", "key", "value", "weights", "out"):
        return f"*{kind}"
    if name == "length":
        return "*i32"
    return "fp32" if name == "scale" else "i32"
