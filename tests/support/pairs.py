"""Pairwise test design: few rows of options that contain every pair of values."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(row: Row) -> set[Pair]:
    return set(combinations(row.items(), 2))


def pairwise(
    table: Mapping[str, Sequence[Any]], fits: Callable[[Row], bool], tries: int = 2000
) -> tuple[list[Row], set[Pair]]:
    """Return rows that satisfy `fits` and contain every pair of values of the table, and the pairs
    for which no row fits. Greedy with a fixed seed, hence deterministic."""
    generator = random.Random(0)
    missing = [
        ((one, a), (other, b))
        for one, other in combinations(table, 2)
        for a in table[one]
        for b in table[other]
    ]
    generator.shuffle(missing)
    uncovered, rows, impossible = dict.fromkeys(missing), [], set()
    while uncovered:
        wanted = next(iter(uncovered))
        candidates: list[Row] = []
        for _ in range(tries):
            row = {name: generator.choice(values) for name, values in table.items()} | dict(wanted)
            if fits(row):
                candidates.append(row)
            if len(candidates) == 30:
                break
        if not candidates:
            impossible.add(wanted)
            del uncovered[wanted]
            continue
        best = max(candidates, key=lambda row: len(pairs_of(row) & uncovered.keys()))
        rows.append(best)
        for pair in pairs_of(best) & uncovered.keys():
            del uncovered[pair]
    return rows, impossible - {pair for row in rows for pair in pairs_of(row)}
