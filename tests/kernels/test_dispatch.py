"""Dispatch: which backend runs, selection by name, and errors for unsupported calls."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from vosengine.kernels import (
    Op,
    ShapeError,
    UnsupportedBackend,
    read_memory,
    use_backend,
)
from vosengine.kernels.shapes import check, check_dtype


class Fake:
    """Backend that supports x below its limit and returns its name."""

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit = name, limit

    def unsupported(self, x: int) -> str | None:
        return None if x < self.limit else f"{self.name} wants x < {self.limit}"

    def run(self, x: int) -> str:
        return self.name


def contract(x: int) -> None:
    if x < 0:
        raise ShapeError("x: wanted 0 or more")


def double(x: int) -> str:
    """Doubles."""
    return "reference"


OP = Op(double, contract, cpu=Fake("cpu", 10), cuda=Fake("cuda", 5))


@pytest.mark.parametrize(("x", "runs"), [(1, "cuda"), (7, "cpu"), (20, "reference")])
def test_auto_takes_the_first_that_supports_the_call(x: int, runs: str) -> None:
    assert OP(x) == runs


def test_a_backend_asked_for_by_name_runs_or_says_why_not() -> None:
    with use_backend("cpu"):
        assert OP(1) == "cpu"
        with pytest.raises(UnsupportedBackend, match=r"cpu wants x < 10.*Supported by: ref"):
            OP(20)
    with use_backend("triton"), pytest.raises(UnsupportedBackend, match="no triton backend"):
        OP(1)
    with use_backend("reference"):
        assert OP(1) == "reference"


def test_the_contract_comes_before_every_backend() -> None:
    for backend in ("auto", "cpu", "reference"):
        with use_backend(backend), pytest.raises(ShapeError):
            OP(-1)


def test_explain_gives_every_reason() -> None:
    assert OP.explain(7) == {
        "cuda": "cuda wants x < 5",
        "triton": "double has no triton backend",
        "cpu": None,
        "reference": None,
    }


def test_the_choice_ends_with_its_block_even_on_an_error() -> None:
    with pytest.raises(ShapeError), use_backend("reference"):
        OP(-1)
    assert OP(1) == "cuda"


def test_the_choice_stays_in_its_thread() -> None:
    seen: list[Any] = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(OP(1)))
        thread.start()
        thread.join()
    assert seen == ["cuda"]


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="wanted one of cuda"), use_backend("gpu"):
        pass


def test_check_binds_letters_and_names_the_culprit() -> None:
    sizes = check({"a": (torch.empty(2, 3), "P C"), "b": (torch.empty(5, 3), "N C")})
    assert sizes == {"P": 2, "C": 3, "N": 5}
    with pytest.raises(
        ShapeError, match=r"b: wanted \[N, C\] with C = 3 \(from a\), given \[5, 4\]"
    ):
        check({"a": (torch.empty(2, 3), "P C"), "b": (torch.empty(5, 4), "N C")})
    with pytest.raises(ShapeError, match=r"a: wanted \[P, C\], given \[2\]"):
        check({"a": (torch.empty(2), "P C")})
    with pytest.raises(ShapeError, match=r"a: wanted \[P, 3\], given \[2, 4\]"):
        check({"a": (torch.empty(2, 4), "P 3")})
    with pytest.raises(ShapeError, match="wanted one device"):
        check({"a": (torch.empty(2), "P"), "b": (torch.empty(2, device="meta"), "P")})


def test_check_dtype() -> None:
    check_dtype("a", torch.empty(1), torch.float16, torch.float32)
    with pytest.raises(ShapeError, match="a: wanted uint8 or int32, given float32"):
        check_dtype("a", torch.empty(1), torch.uint8, torch.int32)


def test_under_autocast_an_op_is_what_it_is_without() -> None:
    """Tensors narrowed by autocast are used as they are if all are, else in the widest dtype."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(1, 6, 4, generator=generator) for _ in range(3))
    narrow = query.bfloat16()
    with use_backend("reference"):
        wanted = read_memory(narrow.float(), keys, values, scale=0.5)
        all_narrow = read_memory(narrow, keys.bfloat16(), values.bfloat16(), scale=0.5)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype), use_backend("reference"):
            assert torch.equal(read_memory(narrow, keys, values, scale=0.5), wanted)
            output = read_memory(narrow, keys.bfloat16(), values.bfloat16(), scale=0.5)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, all_narrow)
    with pytest.raises(ShapeError, match="memory_key: wanted bfloat16, given float32"):
        read_memory(narrow, keys, values, scale=0.5)
