"""`read_memory` with top_k, and how its Triton programs are planned."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import op_backends
import pytest
import torch

from vosengine.kernels import read_memory
from vosengine.kernels.read_memory import triton_kernel, triton_plan
from vosengine.kernels.read_memory.triton_plan import CONFIGS, FLOAT32, Shape, parts_of, plan_of

Arguments = dict[str, Any]
NAMES = op_backends.names_of(read_memory)
USUAL = Shape(3, 1, 1620, 32400, 128, 512, 2)


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def draw(positions: int = 50, *, sets: int | None = None, queries: int = 5) -> Arguments:
    """Bias decides which scores are the greatest: its steps are larger than all products."""
    generator = torch.Generator().manual_seed(4)
    value_shape = (2, positions, 24) if sets is None else (2, sets, positions, 24)
    order = torch.stack([torch.randperm(positions, generator=generator) for _ in range(2)])
    return {
        "query_key": torch.randn(queries, 16, generator=generator),
        "memory_key": torch.randn(2, positions, 16, generator=generator) / 64,
        "memory_value": torch.randn(*value_shape, generator=generator),
        "bias": order / 4,
        "scale": 0.25,
    }


def formula(arguments: Arguments) -> torch.Tensor:
    """The op in NumPy and float64, by sorting scores."""
    arrays = {
        name: value.double().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    value = arrays["memory_value"]
    value = value if value.ndim == 4 else value[:, None]
    queries = arrays["query_key"]
    out = np.zeros((*value.shape[:2], len(queries), value.shape[3]))
    for g, key in enumerate(arrays["memory_key"]):
        end = len(key) if arrays.get("length") is None else int(arrays["length"][g])
        for p in range(len(queries) if end else 0):
            score = arrays["scale"] * key[:end] @ queries[p] + arrays["bias"][g, :end]
            least = np.sort(score)[-min(arrays["top_k"], end)]
            weight = np.where(score >= least, np.exp(score - score.max()), 0)
            out[g, :, p] = (weight / weight.sum()) @ value[g, :, :end]
    return torch.from_numpy(out if arguments["memory_value"].ndim == 4 else out[:, 0])


def assert_matches(arguments: Arguments) -> None:
    plain = read_memory.reference(**arguments)
    op_backends.assert_near(read_memory(**arguments), plain, formula(arguments))


@pytest.mark.parametrize("top_k", [1, 2, 7, 32, 49, 50, 51])
def test_reads_the_best_positions_alone(backend: str, top_k: int) -> None:
    arguments = draw() | {"top_k": top_k}
    reason = read_memory.explain(**arguments)[backend.split()[0]]
    refused = (backend, top_k) == ("triton", 49)
    assert reason == ("wants top_k up to 32, given 49" if refused else None)
    if reason is None:
        assert_matches(arguments)


@pytest.mark.parametrize("sets", [1, 3])
def test_of_each_groups_length(backend: str, sets: int) -> None:
    length = torch.tensor([37, 3], dtype=torch.int32)
    arguments = draw(sets=sets) | {"top_k": 4, "length": length}
    clean = read_memory(**arguments)
    assert_matches(arguments)
    for group, end in enumerate(length.tolist()):
        for name in ("memory_key", "bias"):
            arguments[name][group, end:] = torch.nan
        arguments["memory_value"][group, :, end:] = torch.nan
    assert torch.equal(read_memory(**arguments), clean)


def test_one_best_position_returns_its_value(backend: str) -> None:
    arguments = draw() | {"top_k": 1}
    best = arguments["bias"].argmax(dim=1)
    out = read_memory(**arguments)
    for group in range(2):
        value = arguments["memory_value"][group, best[group]]
        assert torch.equal(out[group], value.expand(5, -1))


def test_equal_scores_are_taken_together(backend: str) -> None:
    """Four equal scores at the threshold are all read, at any positions."""
    arguments = draw()
    arguments["memory_key"] = arguments["memory_key"][:, :1].repeat(1, 50, 1)
    arguments["bias"] = torch.zeros(2, 50)
    arguments["bias"][:, [3, 40]] = 2.0
    arguments["bias"][:, [0, 20, 33, 49]] = 1.0
    outs = [read_memory(**arguments, top_k=top_k) for top_k in (3, 4, 6)]
    weight = torch.tensor([np.e, np.e, 1, 1, 1, 1], dtype=torch.float32)
    values = arguments["memory_value"][:, [3, 40, 0, 20, 33, 49]]
    wanted = torch.einsum("n,gnv->gv", weight / weight.sum(), values)
    for out in outs:
        torch.testing.assert_close(out, wanted[:, None].expand_as(out))


def test_no_fewer_than_there_are_is_all(backend: str) -> None:
    arguments = draw(20)
    whole = read_memory(**arguments)
    for top_k in (20, 21, 1000):
        torch.testing.assert_close(read_memory(**arguments, top_k=top_k), whole)


def test_a_nan_in_a_score_is_not_hidden(backend: str) -> None:
    arguments = draw() | {"top_k": 3}
    arguments["memory_key"][1, 17] = torch.nan
    out = read_memory(**arguments)
    assert torch.isfinite(out[0]).all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("top_k", [0, -1])
def test_at_least_one(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k: wanted at least 1, given {top_k}"):
        read_memory(**draw(), top_k=top_k)


def test_the_plan_knows_shapes_alone() -> None:
    """The launches of a captured graph must not depend on the length of the memory."""
    parameters = inspect.signature(plan_of).parameters
    assert list(parameters) == ["shape", "config", "processors", "top_k"]
    fields = {field.name: field.type for field in dataclasses.fields(Shape)}
    assert set(fields.values()) == {"int"}
    assert "length" not in fields


@pytest.mark.interpreter
def test_launches_are_the_same_for_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[Any, ...]] = []
    launch = triton_kernel.launch

    def spy(kernel: Any, count: int, tile: Any, constants: Any, **arguments: Any) -> None:
        numbers = {n: v for n, v in arguments.items() if isinstance(v, (int, float))}
        launched.append((kernel.fn.__name__, count, tile, constants, numbers))
        launch(kernel, count, tile, constants, **arguments)

    monkeypatch.setattr(triton_kernel, "launch", spy)
    seen = []
    for ends in ((50, 50), (7, 0), (0, 0)):
        launched.clear()
        read_memory(**draw(), top_k=3, length=torch.tensor(ends, dtype=torch.int32))
        seen.append(list(launched))
    assert seen[0] and seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("chip", CONFIGS)
def test_few_queries_are_spread_over_the_chip(chip: int) -> None:
    alone = dataclasses.replace(USUAL, groups=1, positions=8100)
    plan = plan_of(alone, CONFIGS[chip], 132)
    assert plan.programs >= 120
    assert plan_of(alone, CONFIGS[chip], 4).parts < plan.parts


def test_more_than_two_blocks_of_values_share_stored_weights() -> None:
    for config in CONFIGS.values():
        assert not plan_of(USUAL, config, 132).stored
        assert plan_of(dataclasses.replace(USUAL, sets=2), config, 132).stored
    huge = dataclasses.replace(USUAL, sets=2, groups=10, positions=10**6)
    assert not plan_of(huge, CONFIGS[90], 132).stored


@pytest.mark.parametrize("config", [*CONFIGS.values(), FLOAT32])
def test_tiles_of_stored_weights_divide_those_that_wrote_them(config: triton_plan.Config) -> None:
    assert config.score.positions % config.mix.positions == 0


def test_parts_do_not_outnumber_blocks() -> None:
    assert parts_of(1, 1, 132, partials=True) == 1
    assert parts_of(1, 3, 132, partials=False) <= 3
    assert parts_of(10**6, 1000, 132, partials=True) == 1


def test_rows_are_read_past_their_end_only_where_there_is_room() -> None:
    """16-byte loads need whole multiples; the last row may end with the storage."""
    rows = torch.zeros(2, 1, 5, 32)
    assert triton_kernel.readable(rows[..., :21]) == 32
    assert triton_kernel.readable(rows[..., 11:]) == 21  # would reach into the next row
    assert triton_kernel.readable(torch.zeros(2, 1, 5, 21)) == 21
    cut = torch.zeros(32 * 9 + 21).as_strided((2, 1, 5, 21), (160, 160, 32, 1))
    assert triton_kernel.readable(cut) == 21


def test_rows_too_far_apart_are_refused() -> None:
    apart = torch.empty(2 * 2**24, dtype=torch.float16).as_strided((1, 2, 16), (0, 2**24, 1))
    value = torch.zeros(1, 2, 8, dtype=torch.float16)
    query = torch.zeros(3, 16, dtype=torch.float16)
    reason = triton_kernel.unsupported(query, apart, value, scale=1.0)
    assert reason == "wants rows of memory_key less than 16777216 elements apart"
