"""The calls of `read_memory` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make
from . import paged_cases


def _memory(
    queries: int,
    groups: int,
    positions: int,
    key_channels: int = 16,
    value_channels: int = 48,
    *,
    sets: int | None = None,
    query_per_group: bool = False,
    scale: float | None = None,
    bias: bool = False,
    length: tuple[int, ...] | None = None,
    top_k: int | None = None,
) -> Make:
    """Normal keys and values; positions at or past a group's length are NaN."""
    query_shape = (groups, queries) if query_per_group else (queries,)
    value_shape = (groups, positions) if sets is None else (groups, sets, positions)

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        made: dict[str, Any] = {
            "query_key": normal(*query_shape, key_channels),
            "memory_key": normal(groups, positions, key_channels),
            "memory_value": normal(*value_shape, value_channels),
            "scale": key_channels**-0.5 if scale is None else scale,
        }
        if top_k is not None:
            made["top_k"] = top_k
        if bias:
            made["bias"] = normal(groups, positions)
        if length is not None:
            made["length"] = torch.tensor(length, dtype=torch.int32)
            for group, end in enumerate(length):
                made["memory_key"][group, end:] = torch.nan
                made["memory_value"][group, ..., end:, :] = torch.nan
                if bias:
                    made["bias"][group, end:] = torch.nan
        return made

    return make


def _prefix(queries: int, groups: int, positions: int, capacity: int, key: int, value: int) -> Make:
    """The first positions of a larger bank: not contiguous over groups, NaN after the prefix."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        made = _memory(queries, groups, capacity, key, value, length=(positions,) * groups)(
            generator
        )
        for name in ("memory_key", "memory_value"):
            made[name] = made[name][:, :positions]
        del made["length"]
        return made

    return make


def _prefix_of_sets(generator: torch.Generator) -> dict[str, Any]:
    """Two of four sets and a prefix of their positions in a larger bank, NaN elsewhere."""
    made = _memory(17, 2, 300, 9, 37, sets=4, length=(170,) * 2)(generator)
    made["memory_value"][:, 2:] = torch.nan
    made["memory_key"] = made["memory_key"][:, :170]
    made["memory_value"] = made["memory_value"][:, :2, :170]
    del made["length"]
    return made


def _sets_in_rows(generator: torch.Generator) -> dict[str, Any]:
    """Sets as column ranges of one tensor, queries as column ranges of another."""
    made = _memory(9, 2, 33, 20, 3 * 21)(generator)
    made["memory_value"] = made["memory_value"].unflatten(2, (3, 21)).transpose(1, 2)
    made["query_key"] = made["query_key"].repeat(2, 1, 2)[..., 7:27]
    return made


def _wider_rows(generator: torch.Generator) -> dict[str, Any]:
    """Key and value as column ranges of one tensor, so that rows are strided."""
    made = _memory(9, 2, 33, 64, 1)(generator)
    both = made["memory_key"]
    made["memory_key"], made["memory_value"] = both[..., :20], both[..., 20:]
    made["query_key"] = made["query_key"][:, 30:50]
    return made


def _rows_with_room(generator: torch.Generator) -> dict[str, Any]:
    """Values in the first 21 columns of rows of 32, NaN in the others."""
    made = _memory(9, 2, 70, 16, 32)(generator)
    made["memory_value"][..., 21:] = torch.nan
    made["memory_value"] = made["memory_value"][..., :21]
    return made


def _hushed(generator: torch.Generator) -> dict[str, Any]:
    """A bias of -1e4 on two of three positions, including all of the first 300."""
    made = _memory(11, 2, 400, 16, 24, bias=True)(generator)
    made["bias"][:, :300] = -1e4
    made["bias"][:, torch.arange(400) % 3 > 0] = -1e4
    return made


def _equal_scores(generator: torch.Generator) -> dict[str, Any]:
    made = _memory(7, 2, 300)(generator)
    made["memory_key"] = made["memory_key"][:, :1].repeat(1, 300, 1)
    return made


def _rising_scores(generator: torch.Generator) -> dict[str, Any]:
    """Rising scores: every block of memory has a new maximum."""
    made = _memory(13, 1, 1100, 8, 40, bias=True)(generator)
    made["bias"] = torch.linspace(-30, 30, 1100)[None]
    return made


def _apart(
    queries: int,
    positions: int,
    top_k: int,
    *,
    sets: int | None = None,
    length: tuple[int, ...] | None = None,
) -> Make:
    """Scores so far apart that `top_k` selects the same positions in every dtype: the levels of
    positions differ by four times the range of a product with a query."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        groups = 2 if length is None else len(length)
        made = _memory(
            queries, groups, positions, 24, 40, sets=sets, scale=2e-3, bias=True, length=length
        )(generator)
        rank = torch.randperm(positions, generator=generator)
        level = (rank - positions / 2) / 8  # exact in bfloat16 up to 128 of them
        alive = made["bias"].isfinite()
        made["bias"] = torch.where(alive, level, torch.nan)
        return made | {"top_k": top_k}

    return make


def _ties(generator: torch.Generator) -> dict[str, Any]:
    """Every score occurs five times, far apart: with top_k = 7, ten positions are read."""
    made = _apart(6, 24, 7)(generator)
    for name in ("memory_key", "bias"):
        made[name] = made[name].repeat_interleave(5, dim=1)[:, torch.arange(120) * 7 % 120]
    made["memory_value"] = torch.randn(2, 120, 40, generator=generator)
    return made


CASES = (
    Case("one position", _memory(1, 1, 1, 4, 4)),
    Case("odd sizes", _memory(5, 2, 123, 7, 5)),
    Case("more queries", _memory(140, 1, 45)),
    Case("real channels", _memory(40, 1, 77, 128, 512)),
    Case("wide keys", _memory(21, 1, 140, 200, 40)),
    Case("wider keys and many values", _memory(9, 2, 70, 300, 600, length=(70, 37))),
    Case("many sets, bias", _memory(11, 2, 150, 200, 40, sets=3, bias=True, length=(150, 65))),
    Case("several blocks", _memory(37, 1, 1050, 24, 40)),
    Case("no groups", _memory(5, 0, 20)),
    Case("no queries", _memory(0, 2, 20)),
    Case("bias", _memory(21, 2, 300, bias=True)),
    Case("lengths", _memory(19, 4, 290, length=(290, 131, 1, 0))),
    Case("lengths and bias", _memory(19, 4, 290, 7, 5, bias=True, length=(290, 131, 1, 0))),
    Case("all of length 0", _memory(6, 2, 10, length=(0, 0))),
    Case("prefix of a larger bank", _prefix(15, 3, 2 * 35, 5 * 35, 16, 48)),
    Case("key and value in one tensor", _wider_rows),
    Case("rows with room to spare", _rows_with_room),
    Case("one-hot softmax", _memory(23, 2, 270, scale=100.0)),
    Case("negative scale", _memory(23, 2, 270, scale=-0.5)),
    Case("flat softmax", _memory(23, 2, 270, scale=0.0)),
    Case("most positions hushed by bias", _hushed),
    Case("equal scores", _equal_scores),
    Case("rising scores", _rising_scores),
    Case("sets", _memory(9, 1, 1050, 7, 45, sets=2)),
    Case("one set", _memory(21, 2, 300, sets=1)),
    Case("no sets", _memory(21, 2, 300, sets=0)),
    Case("sets, no groups", _memory(21, 0, 300, sets=2)),
    Case("sets of one channel", _memory(7, 2, 77, 5, 1, sets=5)),
    Case("sets, lengths", _memory(19, 4, 290, 7, 50, sets=2, length=(290, 131, 1, 0))),
    Case("sets, bias", _memory(21, 2, 300, sets=3, bias=True)),
    Case("sets, one-hot softmax", _memory(23, 2, 270, sets=2, scale=100.0)),
    Case("sets, prefix of a larger bank", _prefix_of_sets),
    Case("sets in the rows of one tensor", _sets_in_rows),
    Case("a query per group", _memory(37, 3, 130, query_per_group=True)),
    Case("a query per group, one group", _memory(5, 1, 123, 7, 5, query_per_group=True)),
    Case(
        "a query per group, sets, lengths and bias",
        _memory(
            9, 4, 1050, 7, 37, sets=2, query_per_group=True, bias=True, length=(70, 1030, 1, 0)
        ),
    ),
    Case("top_k", _apart(7, 70, 30)),
    Case("top_k of one", _apart(5, 77, 1)),
    Case("top_k, lengths", _apart(9, 90, 7, length=(90, 70, 3, 0))),
    Case("top_k, sets", _apart(9, 90, 5, sets=3, length=(90, 33))),
    Case("top_k, ties", _ties),
    Case("top_k of all", _memory(9, 2, 45, top_k=100)),
    Case("top_k above what is taken in registers", _apart(9, 128, 50)),
    Case("480p, one frame", _memory(1620, 1, 1620, 128, 512), bench=True),
    Case("480p, five frames", _memory(1620, 1, 5 * 1620, 128, 512), bench=True),
    Case(
        "480p, three objects, up to five frames",
        _memory(1620, 3, 5 * 1620, 128, 512, length=(5 * 1620, 3 * 1620, 1620)),
        bench=True,
    ),
    Case(
        "480p, six value sets, five frames",
        _memory(1620, 1, 5 * 1620, 128, 512, sets=6),
        bench=True,
    ),
    Case("480p, two references", _memory(1620, 2, 1620, 256, 2816 + 3 * 21), bench=True),
    Case(
        "regions: ten objects, five frames",
        _memory(196, 10, 5 * 196, 128, 512, query_per_group=True),
        bench=True,
    ),
    *paged_cases.CASES,
)
