"""The calls of `read_memory` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make


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
) -> Make:
    """Normal keys and values; what lies at or past a group's length is poisoned with NaN."""
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
    """The first positions of a larger bank: not contiguous over groups, NaN behind the prefix."""

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
    """Two of four sets and some of their positions in a larger bank, NaN in all the rest."""
    made = _memory(17, 3, 500, 9, 37, sets=4, length=(270,) * 3)(generator)
    made["memory_value"][:, 2:] = torch.nan
    made["memory_key"] = made["memory_key"][:, :270]
    made["memory_value"] = made["memory_value"][:, :2, :270]
    del made["length"]
    return made


def _sets_in_rows(generator: torch.Generator) -> dict[str, Any]:
    """Sets side by side in the rows of one tensor, queries in those of another."""
    made = _memory(9, 2, 33, 20, 3 * 21)(generator)
    made["memory_value"] = made["memory_value"].unflatten(2, (3, 21)).transpose(1, 2)
    made["query_key"] = made["query_key"].repeat(2, 1, 2)[..., 7:27]
    return made


def _wider_rows(generator: torch.Generator) -> dict[str, Any]:
    """Key and value side by side in one tensor, so that rows are strided as well."""
    made = _memory(9, 2, 33, 64, 1)(generator)
    both = made["memory_key"]
    made["memory_key"], made["memory_value"] = both[..., :20], both[..., 20:]
    made["query_key"] = made["query_key"][:, 30:50]
    return made


def _hushed(generator: torch.Generator) -> dict[str, Any]:
    """A bias of -1e4 on two of three positions, among them all of the first 300."""
    made = _memory(11, 2, 400, 16, 24, bias=True)(generator)
    made["bias"][:, :300] = -1e4
    made["bias"][:, torch.arange(400) % 3 > 0] = -1e4
    return made


def _equal_scores(generator: torch.Generator) -> dict[str, Any]:
    made = _memory(7, 2, 300)(generator)
    made["memory_key"] = made["memory_key"][:, :1].repeat(1, 300, 1)
    return made


def _rising_scores(generator: torch.Generator) -> dict[str, Any]:
    """The best match so far comes again and again: every block of memory has a new maximum."""
    made = _memory(13, 1, 1200, 8, 40, bias=True)(generator)
    made["bias"] = torch.linspace(-30, 30, 1200)[None]
    return made


CASES = (
    Case("one position", _memory(1, 1, 1, 4, 4)),
    Case("odd sizes", _memory(5, 2, 123, 7, 5)),
    Case("more queries", _memory(123, 1, 45)),
    Case("real channels", _memory(123, 2, 77, 128, 512)),
    Case("several blocks", _memory(37, 3, 1300, 24, 40)),
    Case("no groups", _memory(5, 0, 20)),
    Case("no queries", _memory(0, 2, 20)),
    Case("bias", _memory(21, 2, 300, bias=True)),
    Case("lengths", _memory(19, 4, 290, length=(290, 131, 1, 0))),
    Case("lengths and bias", _memory(19, 4, 290, 7, 5, bias=True, length=(290, 131, 1, 0))),
    Case("all of length 0", _memory(6, 2, 10, length=(0, 0))),
    Case("prefix of a larger bank", _prefix(15, 3, 2 * 35, 5 * 35, 16, 48)),
    Case("key and value in one tensor", _wider_rows),
    Case("one-hot softmax", _memory(23, 2, 270, scale=100.0)),
    Case("negative scale", _memory(23, 2, 270, scale=-0.5)),
    Case("flat softmax", _memory(23, 2, 270, scale=0.0)),
    Case("most positions hushed by bias", _hushed),
    Case("equal scores", _equal_scores),
    Case("rising scores", _rising_scores),
    Case("sets", _memory(123, 1, 1300, 7, 45, sets=3)),
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
            19, 4, 1100, 7, 37, sets=2, query_per_group=True, bias=True, length=(1100, 1030, 1, 0)
        ),
    ),
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
)
