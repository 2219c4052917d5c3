"""`read_memory` on every backend and instruction set, against independent implementations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import op_backends
import pytest
import torch
from torch.nn import functional

from vosengine.kernels import (
    ShapeError,
    UnsupportedBackend,
    gpu,
    read_memory,
    use_backend,
)
from vosengine.kernels.extension import missing
from vosengine.kernels.parity import widened
from vosengine.kernels.read_memory.cases import CASES

Arguments = dict[str, Any]

# Past a block of the C++ kernel, or past several of Triton's, whose interpreter is slow.
MANY = 150 if gpu.INTERPRETED else 1100

# Triton's kernel does not take so many.
TOO_MANY = {"top_k above what is taken in registers"} if gpu.INTERPRETED else set()
QUICK = [case for case in CASES if not case.bench and case.name not in TOO_MANY]

needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(params=op_backends.names_of(read_memory))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def draw(
    queries: int = 13,
    groups: int = 2,
    positions: int = 300,
    key: int = 16,
    value: int = 40,
    *,
    sets: int | None = None,
    query_per_group: bool = False,
) -> Arguments:
    generator = torch.Generator().manual_seed(1)
    query_shape = (groups, queries) if query_per_group else (queries,)
    value_shape = (groups, positions) if sets is None else (groups, sets, positions)
    return {
        "query_key": torch.randn(*query_shape, key, generator=generator),
        "memory_key": torch.randn(groups, positions, key, generator=generator),
        "memory_value": torch.randn(*value_shape, value, generator=generator),
        "scale": key**-0.5,
    }


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def formula(arguments: Arguments) -> torch.Tensor:
    """The docstring's two lines in numpy, float64, query by query and set by set."""
    arrays = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in widened(arguments).items()
    }
    if "pages" in arrays or "query_of" in arrays:
        arrays = op_backends.in_one_piece(arrays)
    query, key, value = arrays["query_key"], arrays["memory_key"], arrays["memory_value"]
    out = np.zeros((*value.shape[:-2], query.shape[-2], value.shape[-1]))
    for g in range(len(key)):
        end = len(key[g]) if arrays.get("length") is None else arrays["length"][g]
        for p in range(query.shape[-2] if end else 0):
            scores = arrays["scale"] * (
                key[g, :end] @ (query[g, p] if query.ndim == 3 else query[p])
            )
            if arrays.get("bias") is not None:
                scores += arrays["bias"][g, :end]
            weights = np.exp(scores - scores.max())
            if arrays.get("top_k") is not None:
                weights[scores < np.sort(scores)[-min(arrays["top_k"], end)]] = 0
            weights /= weights.sum()
            if value.ndim == 3:
                out[g, p] = weights @ value[g, :end]
            for s in range(value.shape[1] if value.ndim == 4 else 0):
                out[g, s, p] = weights @ value[g, s, :end]
    return torch.from_numpy(out)


def attention(arguments: Arguments) -> torch.Tensor:
    """torch's attention in float64, sets as heads; groups of length 0 are not supported."""
    wide = widened(arguments)
    key, value = wide["memory_key"], wide["memory_value"]
    mask = torch.zeros(key.shape[:2], dtype=torch.float64)
    if wide.get("bias") is not None:
        mask = mask + wide["bias"]
    if wide.get("length") is not None:
        dead = torch.arange(key.shape[1]) >= wide["length"][:, None]
        mask = mask.masked_fill(dead, -torch.inf)
        key = key.masked_fill(dead[..., None], 0)
        value = value.masked_fill((dead if value.ndim == 3 else dead[:, None])[..., None], 0)
    heads = value if value.ndim == 4 else value[:, None]
    query, key = (
        x.expand(len(key), -1, -1)[:, None].expand(-1, heads.shape[1], -1, -1)
        for x in (wide["query_key"], key)
    )
    out = functional.scaled_dot_product_attention(
        query, key, heads, attn_mask=mask[:, None, None], scale=wide["scale"]
    )
    return out if value.ndim == 4 else out[:, 0]


def assert_matches(arguments: Arguments, truth: torch.Tensor) -> None:
    plain = read_memory.reference(**arguments)
    op_backends.assert_near(read_memory(**arguments), plain, truth)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_follows_the_formula(backend: str, case: Any) -> None:
    arguments = case.arguments()
    assert_matches(arguments, formula(arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_half_precision_follows_the_formula(backend: str, case: Any, dtype: torch.dtype) -> None:
    arguments = case.arguments(dtype=dtype)
    assert_matches(arguments, formula(arguments))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("length", [None, (MANY, MANY // 2), (MANY // 4, 1)], ids=str)
@pytest.mark.parametrize("sets", [None, 3], ids=["values", "sets"])
@pytest.mark.parametrize("query_per_group", [False, True], ids=["query", "queries"])
def test_is_what_torch_calls_attention(
    backend: str, query_per_group: bool, sets: int | None, length: Any, bias: bool
) -> None:
    arguments = draw(positions=MANY, key=24, value=56, sets=sets, query_per_group=query_per_group)
    if bias:
        arguments["bias"] = torch.randn(2, MANY, generator=torch.Generator().manual_seed(2))
    if length is not None:
        arguments["length"] = lengths(*length)
    assert_matches(arguments, attention(arguments))


@pytest.mark.parametrize("sets", [None, 2], ids=["values", "sets"])
def test_dead_positions_have_no_influence_at_all(backend: str, sets: int | None) -> None:
    ends = (300, 130, 1)
    arguments = draw(groups=3, sets=sets, query_per_group=sets is not None)
    arguments |= {"length": lengths(*ends), "bias": torch.zeros(3, 300)}
    clean = read_memory(**arguments)
    for poison in (torch.nan, torch.inf, 1e30):
        for group, end in enumerate(ends):
            arguments["memory_key"][group, end:] = arguments["bias"][group, end:] = poison
            arguments["memory_value"][group, ..., end:, :] = poison
        assert torch.equal(read_memory(**arguments), clean)


@pytest.mark.parametrize("query_per_group", [False, True], ids=["query", "queries"])
def test_sets_are_as_many_readings(backend: str, query_per_group: bool) -> None:
    arguments = draw(positions=MANY, value=45, sets=4, query_per_group=query_per_group)
    arguments |= {"bias": torch.linspace(-2, 2, MANY).expand(2, -1), "length": lengths(MANY, 40)}
    together = read_memory(**arguments)
    apart = [
        read_memory(**arguments | {"memory_value": values})
        for values in arguments["memory_value"].unbind(1)
    ]
    torch.testing.assert_close(together, torch.stack(apart, dim=1), rtol=0, atol=1e-6)


def test_queries_per_group_are_readings_of_one_group_each(backend: str) -> None:
    arguments = draw(groups=3, positions=MANY, query_per_group=True)
    together = read_memory(**arguments)
    for group in range(3):
        one = {
            name: value[group : group + 1] if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        apart = read_memory(**one | {"query_key": one["query_key"][0]})
        torch.testing.assert_close(together[group : group + 1], apart, rtol=0, atol=1e-6)


def test_a_bias_per_frame_weighs_frames_and_renormalises(backend: str) -> None:
    """GIEL's temporal attention: w times the softmax, divided by its sum, is a bias of ln w."""
    weight = torch.tensor([0.5, 0.01, 2.0, 1.0])
    arguments = draw(groups=1, positions=4 * 90, sets=2)
    plain, *memory = (
        widened(arguments)[name].numpy() for name in ("query_key", "memory_key", "memory_value")
    )
    scores = plain @ memory[0][0].T * arguments["scale"]
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    weighed = softmax * weight.double().repeat_interleave(90).numpy()
    weighed /= weighed.sum(axis=1, keepdims=True)
    arguments["bias"] = weight.log().repeat_interleave(90)[None]
    assert_matches(arguments, torch.from_numpy(weighed @ memory[1]))


def test_no_sets_return_no_values(backend: str) -> None:
    assert read_memory(**draw(sets=0)).shape == (2, 0, 13, 40)
    assert read_memory(**draw(groups=0, sets=2)).shape == (0, 2, 13, 40)


def test_the_output_is_contiguous(backend: str) -> None:
    for sets in (None, 1, 3):
        out = read_memory(**draw(sets=sets, query_per_group=True))
        assert out.is_contiguous()
        assert out.shape == ((2, 13, 40) if sets is None else (2, sets, 13, 40))


def test_a_length_is_the_same_as_a_shorter_memory(backend: str) -> None:
    arguments = draw(groups=1)
    shorter = {n: x[:, :77] if n.startswith("memory") else x for n, x in arguments.items()}
    long = read_memory(**arguments, length=lengths(77))
    torch.testing.assert_close(long, read_memory(**shorter), rtol=0, atol=1e-6)
    full = read_memory(**arguments, length=lengths(300))
    torch.testing.assert_close(full, read_memory(**arguments), rtol=0, atol=1e-6)


def test_a_group_of_length_zero_is_zeros(backend: str) -> None:
    arguments = draw(groups=3)
    for name in ("memory_key", "memory_value"):
        arguments[name][1] = torch.nan
    out = read_memory(**arguments, length=lengths(300, 0, 5))
    assert torch.equal(out[1], torch.zeros(13, 40))
    assert (out[[0, 2]] != 0).all()


def test_the_order_of_memory_does_not_matter(backend: str) -> None:
    arguments = draw(positions=MANY) | {"bias": torch.linspace(-3, 3, MANY).expand(2, -1)}
    order = torch.randperm(MANY, generator=torch.Generator().manual_seed(3))
    shuffled = {
        name: value[:, order] if name.startswith(("memory", "bias")) else value
        for name, value in arguments.items()
    }
    assert_matches(shuffled, formula(arguments))


def test_one_position_returns_its_value(backend: str) -> None:
    arguments = draw(positions=1)
    out = read_memory(**arguments)
    assert torch.equal(out, arguments["memory_value"].expand(-1, 13, -1))


def test_a_bias_shared_by_all_positions_cancels(backend: str) -> None:
    arguments = draw()
    shifted = arguments | {"bias": torch.full((2, 300), 8.0)}
    assert_matches(shifted, formula(arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_bias_may_have_another_float_dtype(backend: str, dtype: torch.dtype) -> None:
    arguments = draw() | {"bias": torch.linspace(-2, 2, 300).expand(2, -1).to(dtype)}
    assert_matches(arguments, formula(arguments))


def test_a_prefix_view_reads_as_its_copy(backend: str) -> None:
    arguments = draw(groups=3, positions=500)
    for name in ("memory_key", "memory_value"):
        arguments[name] = arguments[name][:, :270]
        assert not arguments[name].is_contiguous()
    copied = {n: x.contiguous() if n.startswith("memory") else x for n, x in arguments.items()}
    assert torch.equal(read_memory(**arguments), read_memory(**copied))


def test_a_prefix_of_sets_and_positions_reads_as_its_copy(backend: str) -> None:
    arguments = draw(groups=3, positions=300, sets=5)
    arguments["memory_key"] = arguments["memory_key"][:, :170]
    arguments["memory_value"] = arguments["memory_value"][:, :3, :170]
    copied = {n: x.contiguous() if n.startswith("memory") else x for n, x in arguments.items()}
    assert torch.equal(read_memory(**arguments), read_memory(**copied))


def test_a_nan_in_one_set_stays_there(backend: str) -> None:
    arguments = draw(sets=3)
    arguments["memory_value"][1, 2, 17] = torch.nan
    out = read_memory(**arguments)
    assert out[1, 2].isnan().all()
    assert torch.isfinite(out[0]).all()
    assert torch.isfinite(out[1, :2]).all()


def test_a_nan_in_living_memory_is_not_hidden(backend: str) -> None:
    for name in ("memory_key", "memory_value", "bias"):
        arguments = draw() | {"bias": torch.zeros(2, 300)}
        arguments[name][1, 17] = torch.nan
        out = read_memory(**arguments)
        assert torch.isfinite(out[0]).all()
        assert out[1].isnan().all()


def test_half_precision_scores_do_not_overflow() -> None:
    """Scores of 1e5 before scaling exceed float16, but not the contract's float32."""
    arguments = draw(key=64)
    arguments = {n: x.half() if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
    arguments["query_key"][:, 0] = arguments["memory_key"][:, :, 0] = 320.0
    out = read_memory.reference(**arguments)
    torch.testing.assert_close(out.double(), formula(arguments), rtol=0, atol=4e-3)


@needs_extension
@pytest.mark.parametrize("groups", [0, 2])
def test_half_precision_of_nothing_is_zeros(groups: int) -> None:
    """No groups, and groups of length 0."""
    arguments = {n: x.half() if isinstance(x, torch.Tensor) else x for n, x in draw().items()}
    for name in ("memory_key", "memory_value"):
        arguments[name] = arguments[name][:groups]
    with use_backend("cpu"):
        out = read_memory(**arguments, length=torch.zeros(groups, dtype=torch.int32))
    assert out.dtype == torch.float16
    assert out.shape == read_memory.reference(**arguments).shape
    assert not out.any()


@needs_extension
def test_the_compiled_backend_says_what_it_does_not_take() -> None:
    arguments = draw()
    assert read_memory.explain(**arguments)["cpu"] is None
    assert "wants float32, bfloat16 or float16, given torch.float64" in str(
        read_memory.explain(**widened(arguments))["cpu"]
    )
    strided = arguments | {"memory_key": arguments["memory_key"].mT.contiguous().mT}
    reason = read_memory.explain(**strided)["cpu"]
    assert reason == "wants the last axis of memory_key contiguous, given stride 300"
    with use_backend("cpu"), pytest.raises(UnsupportedBackend, match="memory_key contiguous"):
        read_memory(**strided)
    torch.testing.assert_close(read_memory(**strided), read_memory(**arguments))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("query_key", torch.zeros(13, 15), r"memory_key: wanted \[G, N, Ck\] with Ck = 15"),
        (
            "query_key",
            torch.zeros(16),
            r"query_key: wanted \[P, Ck\] or \[G, P, Ck\], given \[16\]",
        ),
        ("query_key", torch.zeros(1, 13, 16), r"memory_key: wanted .* G = 1 \(from query_key\)"),
        ("query_key", torch.zeros(2, 13, 15), r"memory_key: wanted \[G, N, Ck\] with Ck = 15"),
        ("memory_key", torch.zeros(300, 16), r"memory_key: wanted \[G, N, Ck\], given \[300, 16\]"),
        ("memory_value", torch.zeros(2, 299, 40), "memory_value: wanted .* with N = 300"),
        ("memory_value", torch.zeros(3, 300, 40), "memory_value: wanted .* with G = 2"),
        (
            "memory_value",
            torch.zeros(300, 40),
            r"\[G, N, Cv\] or \[G, S, N, Cv\], given \[300, 40\]",
        ),
        ("memory_value", torch.zeros(2, 3, 299, 40), r"wanted \[G, S, N, Cv\] with N = 300"),
        ("memory_value", torch.zeros(3, 2, 300, 40), r"wanted \[G, S, N, Cv\] with G = 2"),
        ("memory_value", torch.zeros(1, 2, 3, 300, 40), "memory_value: wanted .* given"),
        ("memory_value", torch.zeros(2, 300, 40).half(), "memory_value: wanted float32"),
        ("memory_value", torch.zeros(2, 300, 40, device="meta"), "memory_value: on meta"),
        ("bias", torch.zeros(300), r"bias: wanted \[G, N\], given \[300\]"),
        ("bias", torch.zeros(2, 1), "bias: wanted .* with N = 300"),
        ("length", lengths(300), "length: wanted .* with G = 2"),
        ("length", torch.tensor([300, 300]), "length: wanted int32, given int64"),
        ("query_key", torch.zeros(13, 16, dtype=torch.int32), "query_key: wanted float16"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        read_memory(**draw() | {name: value})


def test_a_memory_without_positions_is_an_error() -> None:
    with pytest.raises(ShapeError, match="memory_key: wanted at least one memory position"):
        read_memory(**draw(positions=0))
