"""Contract of `pool_regions`: errors and their messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_backends import emulated_cuda
from test_pool_regions import needs_emulation, needs_extension, whole

from vosengine.kernels import ShapeError, UnsupportedBackend, pool_regions, use_backend
from vosengine.kernels.parity import widened


@needs_extension
def test_the_compiled_backend_says_what_it_does_not_take() -> None:
    arguments = whole()
    assert pool_regions.explain(**arguments)["cpu"] is None
    wide = widened(arguments)
    with (
        use_backend("cpu"),
        pytest.raises(UnsupportedBackend, match="wants float32, bfloat16 or"),
    ):
        pool_regions(**wide)
    arguments["levels"][1].requires_grad_()
    assert "has no gradient" in str(pool_regions.explain(**arguments)["cpu"])


@needs_emulation
def test_the_cuda_backend_says_what_it_does_not_take() -> None:
    def reason(**changes: Any) -> str | None:
        return pool_regions.explain(**whole() | changes)["cuda"]

    with emulated_cuda("forwards"):
        assert reason() is None
        assert reason(size=341) is None
        assert "24 KiB of cells and weights, given size 342 with 2 samples" in str(reason(size=342))
        several = {"levels": (torch.zeros(2, 1, 4, 4),) * 16, "strides": (4,) * 16}
        assert reason(**several) == "wants at most 16 maps, given 17"
        assert reason(**several, planes=None) is None
        assert "given torch.float64" in str(pool_regions.explain(**widened(whole()))["cuda"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("levels", (), "levels: wanted a tuple of one or more maps .*, given none"),
        ("levels", [torch.zeros(2, 1, 4, 4)], "levels: wanted a tuple of .*, given a list"),
        ("levels", (torch.zeros(2, 1, 4),) * 2, r"levels\[0\]: wanted \[B, C0, H0, W0\]"),
        (
            "levels",
            (torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4)),
            r"levels\[1\]: .* B = 2",
        ),
        ("levels", (torch.zeros(2, 1, 0, 4),) * 2, r"levels\[0\]: wanted at least one cell"),
        (
            "levels",
            (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4).half()),
            r"levels\[1\]: wanted float32, given float16",
        ),
        ("levels", (torch.zeros(2, 1, 4, 4).int(),) * 2, r"levels\[0\]: wanted float16"),
        ("levels", (torch.zeros(0, 1, 4, 4),) * 2, "frame: wanted the image .* with B = 0"),
        ("boxes", torch.zeros(6, 5), r"boxes: wanted \[R, 4\], given \[6, 5\]"),
        ("boxes", torch.zeros(6, 4).int(), "boxes: wanted float16"),
        ("boxes", torch.zeros(6, 4, device="meta"), "boxes: on meta"),
        ("frame", None, "frame: wanted the image of each of the 6 regions, .* given None with B"),
        ("frame", torch.zeros(5, dtype=torch.int32), "frame: wanted .* with R = 6"),
        ("frame", torch.zeros(6, dtype=torch.int64), "frame: wanted int32, given int64"),
        ("planes", torch.zeros(5, 4, 4), "planes: wanted .* with R = 6"),
        ("planes", torch.zeros(6, 4, 0), "planes: wanted at least one cell"),
        ("planes", torch.zeros(6, 4, 4).double(), "planes: wanted float32, given float64"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pool_regions(**whole() | {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("strides", (4,), r"strides: wanted one for each of the 2 levels, given \(4,\)"),
        ("strides", (4, 0), r"strides.*: wanted 1 or more pixels per cell, given \(4, 0\)"),
        ("plane_stride", 0, "plane_stride: wanted 1 or more pixels per cell, .* and 0"),
        ("size", 0, "size: wanted 1 or more bins on each side, given 0"),
        ("sampling", 0, "sampling: wanted 1 to 8 samples .*adaptive.*, given 0"),
        ("sampling", 9, "sampling: wanted 1 to 8 samples .*, given 9"),
    ],
)
def test_wrong_options_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_regions(**whole() | {name: value})
