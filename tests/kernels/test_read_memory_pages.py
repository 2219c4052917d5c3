"""`read_memory` with paged memory, and with queries shared by groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import op_backends
import pytest
import torch

from vosengine.kernels import ShapeError, read_memory
from vosengine.kernels.read_memory.paged_cases import CASES, _paged

Arguments = dict[str, Any]
QUICK = [case for case in CASES if not case.bench]


@pytest.fixture(params=op_backends.names_of(read_memory))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def draw(**changes: Any) -> Arguments:
    """Three groups of 60, 21 and 0 positions in pages of 20, with the queries of two streams."""
    defaults: Arguments = {"query_of": (1, 0, 1), "bias": True, "columns": 4}
    made = _paged(9, 8, 20, (60, 21, 0), 16, 40, **defaults | changes)
    return made(torch.Generator().manual_seed(5))


def in_one_piece(arguments: Arguments) -> Arguments:
    """Return the same call without pages and query_of, NaN past every length."""
    arrays = {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
    apart = op_backends.in_one_piece(arrays)
    for name, value in apart.items():
        if isinstance(value, np.ndarray):
            apart[name] = torch.empty(value.shape, dtype=torch.from_numpy(value).dtype)
            apart[name].copy_(torch.from_numpy(value))
    return apart


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_pages_read_as_the_same_memory_in_one_piece(backend: str, case: Any) -> None:
    """Bitwise equal: the products use the same tiles. Triton's tiles end at page boundaries."""
    arguments = case.arguments()
    output, wanted = read_memory(**arguments), read_memory(**in_one_piece(arguments))
    if backend == "triton":
        torch.testing.assert_close(output, wanted, rtol=0, atol=2e-6)
    else:
        assert torch.equal(output, wanted)


def test_what_no_group_reads_has_no_influence(backend: str) -> None:
    arguments = draw()
    clean = read_memory(**arguments)
    alive = arguments["bias"].isfinite()
    assert alive.any() and not alive.all()
    for poison in (torch.inf, 1e30, 0.0):
        for name in ("memory_key", "memory_value", "bias"):
            arguments[name][~alive] = poison
        assert torch.equal(read_memory(**arguments), clean)
    used = torch.tensor([[3], [2], [0]]) > torch.arange(4)
    for number in (-(2**31), -1, 0, 7, 8, 2**31 - 1):
        arguments["pages"][~used] = number
        assert torch.equal(read_memory(**arguments), clean)
    assert not clean[2].any()


def test_the_order_of_pages_does_not_matter_to_a_pool(backend: str) -> None:
    arguments = draw()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(6))
    moved = arguments | {n: arguments[n][order] for n in ("memory_key", "memory_value", "bias")}
    where = order.argsort().int()
    pages = arguments["pages"]
    inside = (pages >= 0) & (pages < 8)
    moved["pages"] = torch.where(inside, where[pages.clamp(0, 7)], pages)
    assert torch.equal(read_memory(**moved), read_memory(**arguments))


def test_groups_of_one_page_and_one_query_read_alike(backend: str) -> None:
    arguments = draw(query_of=(0, 0, 0))
    arguments["pages"][:] = arguments["pages"][0]
    arguments["length"][:] = 60
    out = read_memory(**arguments)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
    arguments["query_key"] = arguments["query_key"][0]
    del arguments["query_of"]
    assert torch.equal(read_memory(**arguments), out)


def test_numbers_outside_count_as_the_nearest(backend: str) -> None:
    """Memory outside the pool is never read, even with an invalid page table."""
    arguments = draw()
    nearest = arguments | {"pages": arguments["pages"].clone(), "query_of": torch.tensor([1, 0, 1])}
    nearest["query_of"] = nearest["query_of"].int()
    arguments["query_of"] = torch.tensor([2**31 - 1, -5, 2], dtype=torch.int32)
    for name in ("memory_key", "memory_value", "bias"):
        arguments[name].nan_to_num_(0)
    arguments["pages"][0, :2] = torch.tensor([9999, -1])
    nearest["pages"][0, :2] = torch.tensor([7, 0])
    assert torch.equal(read_memory(**arguments), read_memory(**nearest))


def test_tables_may_be_views(backend: str) -> None:
    arguments = draw(columns=9)
    wanted = read_memory(**arguments)
    arguments["pages"] = arguments["pages"].repeat_interleave(2, dim=1)[:, ::2]
    arguments["query_of"] = arguments["query_of"].repeat_interleave(2)[::2]
    assert not arguments["pages"].is_contiguous()
    assert torch.equal(read_memory(**arguments), wanted)
    arguments["pages"] = arguments["pages"][:, :3]
    torch.testing.assert_close(read_memory(**arguments), wanted, rtol=0, atol=1e-6)


def test_gradients_reach_pages_and_queries() -> None:
    arguments = draw(columns=3)
    for name in ("query_key", "memory_key", "memory_value"):
        arguments[name] = arguments[name].nan_to_num(0).double().requires_grad_()
    read_memory(**arguments).square().sum().backward()
    apart = {n: x.detach() if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
    for name in ("query_key", "memory_key", "memory_value"):
        apart[name] = arguments[name].detach().clone().requires_grad_()
    pages = apart.pop("pages").clamp(0, 7)
    moved = {n: apart[n][pages].flatten(1, 2) for n in ("memory_key", "memory_value", "bias")}
    query = apart["query_key"][apart.pop("query_of")]
    read_memory(**apart | moved | {"query_key": query}).square().sum().backward()
    for name in ("query_key", "memory_key", "memory_value"):
        assert arguments[name].grad.abs().sum() > 0
        torch.testing.assert_close(arguments[name].grad, apart[name].grad)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pages", torch.zeros(3, 4), "pages: wanted int32, given float32"),
        ("pages", torch.zeros(3, dtype=torch.int32), r"pages: wanted \[G, T\], given \[3\]"),
        ("pages", torch.zeros(3, 0, dtype=torch.int32), "pages: wanted at least one page"),
        ("pages", torch.zeros(4, 2, dtype=torch.int32), "length: wanted .* G = 4 .from pages."),
        ("pages", torch.zeros(3, 4, dtype=torch.int32, device="meta"), "pages: on meta"),
        ("memory_key", torch.zeros(160, 16), r"memory_key: wanted \[K, L, Ck\], given \[160, 16\]"),
        ("memory_key", torch.zeros(8, 19, 16), "memory_value: wanted .* L = 19"),
        (
            "memory_value",
            torch.zeros(8, 2, 20, 40),
            r"memory_value: with pages wanted \[K, L, Cv\], given \[8, 2, 20, 40\]; pages hold one",
        ),
        ("bias", torch.zeros(3, 80), r"bias: wanted \[K, L\] with K = 8"),
        ("length", torch.zeros(8, dtype=torch.int32), "length: wanted .* G = 3"),
        ("query_of", torch.zeros(3, dtype=torch.int64), "query_of: wanted int32, given int64"),
        ("query_of", torch.zeros(2, dtype=torch.int32), "query_of: wanted .* G = 3"),
        ("query_key", torch.zeros(9, 16), r"with query_of wanted \[B, P, Ck\], given \[9, 16\]"),
        ("query_key", torch.zeros(0, 9, 16), "at least one query for 3 groups, given B = 0"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        read_memory(**draw() | {name: value})


@pytest.mark.parametrize("shape", [(0, 20), (8, 0)])
def test_a_pool_without_positions_is_an_error(shape: tuple[int, int]) -> None:
    empty = {
        "memory_key": torch.zeros(*shape, 16),
        "memory_value": torch.zeros(*shape, 40),
        "bias": torch.zeros(shape),
    }
    with pytest.raises(ShapeError, match="memory_key: wanted at least one page of one position"):
        read_memory(**draw() | empty)
