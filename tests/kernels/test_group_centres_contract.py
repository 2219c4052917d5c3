"""What `group_centres` refuses, and how it says so."""

from __future__ import annotations

import op_backends
import pytest
import torch
from test_group_centres import Arguments, draw, needs_emulation, needs_extension

from vosengine.kernels import (
    ShapeError,
    UnsupportedBackend,
    group_centres,
    use_backend,
)
from vosengine.kernels.parity import widened


@needs_emulation
def test_the_cuda_backend_says_what_it_does_not_take() -> None:
    arguments = draw(5, 6)
    with op_backends.emulated_cuda("forwards"):
        assert group_centres.explain(**arguments)["cuda"] is None
        reason = group_centres.explain(**widened(arguments))["cuda"]
        assert reason == "wants float32, float16 or bfloat16, given torch.float64"
        endless = {name: x[..., :1, :1].expand(*x.shape[:-2], 1 << 16, 1 << 15)
                   for name, x in arguments.items()}  # fmt: skip
        assert "less than 2^31 pixels" in str(group_centres.explain(**endless)["cuda"])


@needs_extension
def test_the_compiled_backend_says_what_it_does_not_take() -> None:
    arguments = draw(5, 6)
    assert group_centres.explain(**arguments)["cpu"] is None
    wide = widened(arguments)
    assert group_centres.explain(**wide)["cpu"] == "wants float32, given torch.float64"
    with use_backend("cpu"), pytest.raises(UnsupportedBackend, match="wants float32"):
        group_centres(**wide)
    learned = arguments | {"heatmap": arguments["heatmap"].requires_grad_()}
    assert "has no gradient" in str(group_centres.explain(**learned)["cpu"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heatmap", torch.zeros(5, 6), r"heatmap: wanted \[B, H, W\], given \[5, 6\]"),
        ("offset", torch.zeros(1, 1, 5, 6), r"offset: wanted \[B, 2, H, W\], given \[1, 1, 5, 6\]"),
        ("offset", torch.zeros(1, 2, 5, 7), "offset: wanted .* with W = 6"),
        ("offset", torch.zeros(1, 2, 5, 6).half(), "offset: wanted float32, given float16"),
        ("foreground", torch.zeros(2, 5, 6) > 0, "foreground: wanted .* with B = 1"),
        ("foreground", torch.zeros(1, 5, 6), "foreground: wanted bool, given float32"),
        ("foreground", torch.zeros(1, 5, 6, dtype=torch.uint8), "foreground: wanted bool, given"),
        ("foreground", torch.zeros(1, 5, 6, device="meta") > 0, "foreground: on meta"),
        ("heatmap", torch.zeros(1, 5, 6).int(), "heatmap: wanted float16"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        group_centres(**draw(5, 6) | {name: value})


def test_a_frame_without_pixels_is_refused() -> None:
    empty = {name: tensor[..., :0] for name, tensor in draw(5, 6).items()}
    with pytest.raises(ShapeError, match=r"wanted at least one pixel, given \[1, 5, 0\]"):
        group_centres(**empty)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"window": 6}, "window: wanted an odd number of cells, given 6"),
        ({"window": -1}, "window: wanted an odd number of cells, given -1"),
        ({"limit": 0}, "limit: wanted 1 to 255 centres, given 0"),
        ({"limit": 256}, "limit: wanted 1 to 255 centres, given 256"),
        ({"threshold": float("nan")}, "threshold: wanted a number, given nan"),
    ],
    ids=str,
)
def test_wrong_options_are_named(option: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_centres(**draw(5, 6), **option)
