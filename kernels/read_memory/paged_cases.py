"""The calls of `read_memory` with paged memory, or with queries shared by groups.

Pages and rows that no group reads are NaN, and page numbers past a group's length are arbitrary
int32.
"""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make

GARBAGE = (-1, 2**31 - 1, -(2**31), 12345, -77)


def _paged(
    queries: int,
    pool: int,
    page: int,
    length: tuple[int, ...],
    key: int = 16,
    value: int = 48,
    *,
    columns: int | None = None,
    all_alive: bool = False,
    spare: tuple[int, int] = (0, 0),
    query_of: tuple[int, ...] | None = None,
    query_per_group: bool = False,
    bias: bool = False,
    top_k: int | None = None,
) -> Make:
    """Groups of `length` positions in pages of `page`; neighbouring groups share their first page.

    pool        pages in the pool
    columns     of the page table; None: as many as the longest group needs
    all_alive   `length` is not passed: every group has that many whole pages
    spare       pages, and rows per page, by which the pool is a prefix of a larger one
    top_k       with a bias that makes the greatest scores the same in every dtype
    """

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        groups, rows = len(length), pool * page
        wanted = [-(-end // page) for end in length]
        width = columns or max((1, *wanted))
        garbage = torch.randint(len(GARBAGE), (groups, width), generator=generator)
        pages = torch.tensor(GARBAGE, dtype=torch.int32)[garbage]
        read = torch.zeros(pool, page, dtype=torch.bool)
        for group, end in enumerate(length):
            mine = torch.randperm(pool, generator=generator)[: wanted[group]].int()
            if group % 2 and wanted[group] and wanted[group - 1]:
                first = pages[group - 1, 0]
                mine = torch.cat((first[None], mine[mine != first]))[: wanted[group]]
            pages[group, : wanted[group]] = mine
            for n, number in enumerate(mine.tolist()):
                read[number, : end - n * page] = True
        query_shape: tuple[int, ...] = (queries,)
        if query_of is not None or query_per_group:
            query_shape = (groups if query_of is None else max(query_of) + 1, queries)
        made: dict[str, Any] = {
            "query_key": normal(*query_shape, key),
            "memory_key": normal(pool, page, key),
            "memory_value": normal(pool, page, value),
            "scale": key**-0.5,
            "pages": pages,
        }
        if not all_alive:
            made["length"] = torch.tensor(length, dtype=torch.int32)
        if query_of is not None:
            made["query_of"] = torch.tensor(query_of, dtype=torch.int32)
        if bias:
            made["bias"] = normal(pool, page)
        if top_k is not None:
            rank = torch.randperm(rows, generator=generator).view(pool, page)
            made |= {"top_k": top_k, "scale": 2e-3, "bias": (rank - rows / 2) / 8}
        for name in ("memory_key", "memory_value", "bias"):
            if name in made:
                made[name] = _with_room(made[name], read, spare)
        return made

    return make


def _with_room(memory: torch.Tensor, read: torch.Tensor, spare: tuple[int, int]) -> torch.Tensor:
    """Return memory as a prefix of a larger pool, NaN at positions that are not read."""
    pool, page = read.shape
    larger = memory.new_full((pool + spare[0], page + spare[1], *memory.shape[2:]), torch.nan)
    view = larger[:pool, :page]
    view[read] = memory[read]
    return view


def _two_streams(*, sets: bool) -> Make:
    """Contiguous memory; the groups of each of two streams share a query."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        made = _paged(11, 4, 70, (70,) * 4, 9, 37, query_of=(0, 1, 1, 0), all_alive=True)(generator)
        for name in ("memory_key", "memory_value"):
            made[name] = made[name][made["pages"][:, 0]]
        if sets:
            made["memory_value"] = made["memory_value"].unflatten(1, (2, 35))
            made["memory_key"] = made["memory_key"][:, :35]
        del made["pages"]
        return made

    return make


CASES = (
    Case("pages, one page a group", _paged(7, 3, 45, (45, 45), all_alive=True)),
    Case("pages, lengths", _paged(19, 12, 35, (140, 71, 1, 0, 35))),
    Case("pages, a table far wider than lengths", _paged(9, 9, 21, (60, 5, 0), columns=90)),
    Case("pages of one position", _paged(5, 40, 1, (33, 7), 7, 5)),
    Case("pages, several blocks", _paged(37, 13, 170, (1200, 1050), 24, 40)),
    Case("pages longer than blocks", _paged(9, 3, 1100, (2200, 1030), 8, 20)),
    Case("pages, bias", _paged(21, 8, 50, (150, 120), bias=True)),
    Case("pages, a query per group", _paged(13, 6, 64, (128, 64, 9), query_per_group=True)),
    Case("pages, real channels", _paged(40, 5, 48, (96, 77), 128, 512)),
    Case("pages, wide keys and many values", _paged(9, 5, 40, (80, 37), 300, 600)),
    Case(
        "pages, prefix of a larger pool",
        _paged(15, 6, 35, (105, 70), 16, 48, spare=(2, 5), bias=True),
    ),
    Case("pages, no groups", _paged(5, 3, 20, ())),
    Case("pages, all of length 0", _paged(6, 3, 10, (0, 0), columns=2)),
    Case(
        "pages, queries of three streams",
        _paged(17, 14, 40, (120, 40, 75, 0, 81), query_of=(0, 2, 1, 1, 2), bias=True),
    ),
    Case("pages, top_k", _paged(7, 4, 30, (90, 41, 30), top_k=7)),
    Case(
        "pages, top_k, wide table, queries of two streams",
        _paged(9, 6, 17, (50, 0, 3), columns=40, query_of=(1, 0, 0), top_k=5),
    ),
    Case("pages, top_k of all", _paged(7, 4, 20, (40, 40), all_alive=True, top_k=100)),
    Case("queries of two streams", _two_streams(sets=False)),
    Case("queries of two streams, sets", _two_streams(sets=True)),
    Case(
        "480p, three objects, up to five frames, in pages",
        _paged(1620, 12, 1620, (5 * 1620, 3 * 1620, 1620), 128, 512, columns=5),
        bench=True,
    ),
    Case(
        "480p, one object, five frames, in pages",
        _paged(1620, 8, 1620, (5 * 1620,), 128, 512, all_alive=True),
        bench=True,
    ),
)
