"""Builds of the Triton programs of `read_memory`, compiled for every chip without a GPU."""

from __future__ import annotations

from typing import Any

from ..resources import Build, chips_by
from . import triton_programs as programs
from . import triton_top_k as top_k_programs
from .triton_plan import (
    CONFIGS,
    FLOAT32,
    MERGED,
    MOST_KEPT,
    SETTLED,
    Config,
    Shape,
    Tile,
    merge_constants,
    mix_constants,
    plan_of,
    read_constants,
    score_constants,
    settle_constants,
)


def builds() -> tuple[Build, ...]:
    """Every program as the tuning tables launch it at 480p: 128 key and 512 value channels (STM),
    several sets of values, and DMN-AOA's references (256 key channels and wide values)."""
    chosen = chips_by(CONFIGS)
    narrow = [b for config, chips in chosen.items() for b in _builds(config, "bf16", chips)]
    return (*narrow, *_builds(FLOAT32, "fp32", tuple(CONFIGS)))


def _builds(config: Config, kind: str, chips: tuple[int, ...]) -> list[Build]:
    size = 4 if kind == "fp32" else 2
    shape = Shape(3, 1, 1620, 32400, 128, 512, size)
    usual = plan_of(shape, config, 132)
    best = plan_of(shape, config, 132, top_k=True)
    sets = plan_of(Shape(1, 6, 1620, 8100, 128, 512, size), config, 132)
    wide = plan_of(Shape(2, 1, 1620, 1620, 256, 2879, size), config, 132)
    kept = {"KEPT": MOST_KEPT}
    whole = {"pages": None, "page_count": None, "columns": None, "page": None, "padded": None}
    alike = {"query_of": None, "query_count": None}

    def build(
        name: str,
        kernel: Any,
        tile: Tile,
        constants: dict[str, Any],
        *,
        matrix: bool = True,
        paged: bool = False,
    ) -> Build:
        names = kernel.arg_names
        if not paged:
            constants = {n: None for n in names if n in whole | alike} | constants
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
    in_pages = read_constants(usual) | without | unbiased
    all_builds = [
        build("read", read, usual.reading, read_constants(usual) | without | unbiased),
        build("read, bias and top_k", read, best.reading, read_constants(best)),
        build("best", top_k_programs.find_best, best.scoring, score_constants(best) | kept),
        build("peaks", programs.find_peaks, sets.scoring, score_constants(sets)),
        build("weigh", programs.weigh, sets.scoring, score_constants(sets)),
        build("mix", programs.mix, sets.reading, mix_constants(sets)),
        build("read, pages", read, usual.reading, in_pages, paged=True),
        build("read, pages, bias and top_k", read, best.reading, read_constants(best), paged=True),
    ]
    if kind != "fp32":
        settled = settle_constants(best) | kept
        all_builds += [
            build("read, bias", read, usual.reading, read_constants(usual) | without),
            build("weigh, 256 channels", programs.weigh, wide.scoring, score_constants(wide)),
            build("merge", programs.merge, MERGED, merge_constants(usual), matrix=False),
            build("threshold", top_k_programs.find_threshold, SETTLED, settled, matrix=False),
        ]
    return all_builds


# Multiples of 16 in real use; counts of queries, positions and parts are not.
DIVISIBLE = (
    *("query_group", "query_row", "key_group", "key_row", "key_channels", "weight_row"),
    *("value_group", "value_set", "value_row", "value_channels", "readable", "padded"),
)
FLOATS = ("bias", "threshold", "peaks", "sums", "parted", "best")


def _type_of(name: str, kind: str, constants: dict[str, Any]) -> str:
    if name in FLOATS or (name == "out" and constants.get("PARTED")):
        return "*fp32"
    if name in ("query", "key", "value", "weights", "out"):
        return f"*{kind}"
    if name in ("length", "pages", "query_of"):
        return "*i32"
    return "fp32" if name == "scale" else "i32"
