"""Partition of `read_memory` into Triton programs, from shapes and the chip only.

The plan does not depend on `length`, which is on the device, so a captured graph stays valid while
the memory grows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

MOST_KEPT = 32  # maximum top_k: XMem and Cutie use 30
MOST_PARTS = 32
MOST_STORED = 512 * 2**20  # maximum bytes of stored weights
START, MERGE = 4, 4  # costs of starting a program and of a second launch, in blocks of positions
PARTIALS_PER_BLOCK = 12  # tiles of partial sums written and read in the time of a block


@dataclass(frozen=True)
class Tile:
    """Tile of one program: `rows` queries, `positions` per step, `columns` channels."""

    rows: int
    positions: int
    columns: int  # of values; of keys in passes without values
    warps: int
    stages: int


@dataclass(frozen=True)
class Config:
    """Tiles of the programs.

    read   one pass
    best   one pass with top_k, and the search for thresholds
    score  passes over the keys only
    mix    stored weights times values; its positions divide those of `score`
    """

    read: Tile
    best: Tile
    score: Tile
    mix: Tile


# Chosen from the resource report, not yet timed. On Hopper two warpgroups of 64 rows share a block
# of 256 value channels: with all 512, 64 rows would fit, and the arithmetic intensity per byte from
# L2 would halve, far too low for the tensor cores.
HOPPER = Config(
    read=Tile(128, 64, 256, warps=8, stages=3),
    best=Tile(128, 64, 256, warps=8, stages=3),
    score=Tile(128, 64, 128, warps=8, stages=3),
    mix=Tile(128, 64, 256, warps=8, stages=3),
)
BLACKWELL = replace(
    HOPPER,
    read=Tile(128, 32, 256, warps=8, stages=3),
    best=Tile(128, 32, 256, warps=8, stages=3),
)
AMPERE = Config(
    read=Tile(64, 32, 256, warps=4, stages=2),
    best=Tile(64, 16, 256, warps=4, stages=2),
    score=Tile(64, 64, 128, warps=4, stages=2),
    mix=Tile(128, 32, 128, warps=8, stages=3),
)
CONSUMER = replace(AMPERE, read=Tile(64, 16, 256, warps=4, stages=2))
CONFIGS = {80: AMPERE, 86: AMPERE, 89: AMPERE, 90: HOPPER, 100: BLACKWELL, 120: CONSUMER}
# float32 uses FMAs in full precision; the same tiles on all chips.
FLOAT32 = Config(
    read=Tile(32, 64, 64, warps=8, stages=2),
    best=Tile(32, 64, 64, warps=8, stages=1),
    score=Tile(32, 32, 32, warps=4, stages=2),
    mix=Tile(32, 32, 64, warps=4, stages=1),
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a call."""

    groups: int
    sets: int
    queries: int
    positions: int
    key_channels: int
    value_channels: int
    itemsize: int


@dataclass(frozen=True)
class Plan:
    """Plan of one call.

    stored       whether weights are stored and multiplied with all values, instead of one pass
    reading      tile of the one pass, or of the product with stored weights
    scoring      tile of every pass over the keys
    parts        parts of the memory for `reading`
    score_parts  parts of the memory for passes over the keys only
    programs     number of programs: pass over values, pass over keys, merge of parts
    """

    stored: bool
    reading: Tile
    scoring: Tile
    chunk: int
    chunks: int
    parts: int
    score_parts: int
    programs: int
    score_programs: int
    merge_programs: int


MERGED = Tile(8, 1, 256, warps=4, stages=1)
SETTLED = Tile(16, 1, MOST_KEPT, warps=1, stages=1)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(least: int, size: int, most: int) -> int:
    """Return the smallest power of two that is at least `size`, within `least` and `most`."""
    return min(max(least, 1 << (size - 1).bit_length() if size > 1 else 1), most)


def parts_of(programs: int, blocks: int, processors: int, *, partials: bool) -> int:
    """Return the number of parts that keeps all multiprocessors busy.

    programs    number of programs without splitting
    blocks      blocks of positions in the memory
    processors  multiprocessors of the chip
    partials    whether parts write partial sums that are merged
    """

    def cost(parts: int) -> float:
        waves = ceil_div(programs * parts, processors)
        work = waves * (ceil_div(blocks, parts) + START)
        if parts == 1:
            return work
        return work + (MERGE + programs * parts / PARTIALS_PER_BLOCK if partials else 0)

    return min(range(1, min(MOST_PARTS, blocks) + 1), key=cost)


def plan_of(shape: Shape, config: Config, processors: int, *, top_k: bool = False) -> Plan:
    """Return the plan of a call with at least one query, group and value channel.

    One pass recomputes the scores for every block of value channels: blocks * (Ck + columns)
    operations. Stored weights need the scores twice, for the maximum and for the weights, then the
    product: 2 * Ck + blocks * columns. So up to two blocks are read in one pass: two cost the same
    operations, but stored weights pass through memory.
    """
    read = config.best if top_k else config.read
    score, mix = config.score, config.mix
    columns = power_of_two(16, shape.value_channels, read.columns)
    value_blocks = shape.sets * ceil_div(shape.value_channels, columns)
    rows_in_all = shape.groups * shape.queries
    stored = value_blocks > 2 and rows_in_all * shape.positions * shape.itemsize <= MOST_STORED
    reading = mix if stored else read
    scoring = score if stored else read
    columns = power_of_two(16, shape.value_channels, reading.columns)
    value_blocks = shape.sets * ceil_div(shape.value_channels, columns)
    chunk = power_of_two(16, shape.key_channels, score.columns)
    if not stored and 128 <= chunk < shape.key_channels:
        chunk //= 2  # three or more chunks are looped over, which leaves registers for the values
    programs = shape.groups * ceil_div(shape.queries, reading.rows) * value_blocks
    score_programs = shape.groups * ceil_div(shape.queries, scoring.rows)
    parts = parts_of(
        programs, ceil_div(shape.positions, reading.positions), processors, partials=True
    )
    score_parts = parts_of(
        score_programs, ceil_div(shape.positions, scoring.positions), processors, partials=False
    )
    return Plan(
        stored=stored,
        reading=Tile(reading.rows, reading.positions, columns, reading.warps, reading.stages),
        scoring=scoring,
        chunk=chunk,
        chunks=max(1, ceil_div(shape.key_channels, chunk)),
        parts=parts,
        score_parts=score_parts,
        programs=programs * parts,
        score_programs=score_programs * score_parts,
        merge_programs=shape.groups
        * shape.sets
        * ceil_div(shape.queries, MERGED.rows)
        * ceil_div(shape.value_channels, MERGED.columns),
    )


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
