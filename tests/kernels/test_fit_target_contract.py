"""Contract of `fit_target`, `reduce_labels` and `objective`: errors and their messages."""

from __future__ import annotations

import pytest
import torch
from test_fit_target import needs_extension, noise, problem

from vosengine.kernels import ShapeError, UnsupportedBackend, fit_target, use_backend
from vosengine.kernels.fit_target import objective, reduce_labels
from vosengine.kernels.parity import widened


def test_wrong_labels_are_named() -> None:
    good = torch.rand(2, 9, 9)
    with pytest.raises(ShapeError, match=r"pixel_weights: wanted \[2, 9, 9\].*given \[9, 9\]"):
        reduce_labels(good, good[0], (3, 3))
    with pytest.raises(ShapeError, match=r"labels: wanted \[..., H, W\], not empty, given \[9\]"):
        reduce_labels(good[0, 0], good[0, 0], (3, 3))
    with pytest.raises(ShapeError, match=r"labels: wanted float16 .* given bool"):
        reduce_labels(good > 0, good, (3, 3))
    with pytest.raises(ShapeError, match="pixel_weights: wanted float32, given float64"):
        reduce_labels(good, good.double(), (3, 3))
    with pytest.raises(ShapeError, match=r"cells: wanted at least \(1, 1\), given \(0, 3\)"):
        reduce_labels(good, good, (0, 3))


@needs_extension
def test_the_compiled_backend_says_what_it_does_not_take() -> None:
    arguments = problem(noise(), 2)
    assert fit_target.explain(**arguments)["cpu"] is None
    wide = widened(arguments)
    assert fit_target.explain(**wide)["cpu"] == "wants float32, given torch.float64"
    with use_backend("cpu"), pytest.raises(UnsupportedBackend, match="wants float32"):
        fit_target(**wide)
    arguments["projection"].requires_grad_()
    assert "has no gradient" in str(fit_target.explain(**arguments)["cpu"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features", torch.zeros(3, 4, 6, 7), r"features: wanted \[K, J, C, h, w\], given"),
        ("bands", torch.zeros(1, 3, 8, 6, 7), r"bands: wanted \[K, J, 9, h, w\], given"),
        ("targets", torch.zeros(1, 3, 6, 8), "targets: wanted .* with w = 7"),
        ("sample_weight", torch.zeros(1, 2), "sample_weight: wanted .* with J = 3"),
        ("kernel", torch.zeros(2, 2, 3, 3), "kernel: wanted .* with K = 1"),
        (
            "kernel",
            torch.zeros(1, 2, 3, 5),
            r"kernel: wanted \[K, D, 3, 3\] .*given \[1, 2, 3, 5\]",
        ),
        ("projection", torch.zeros(1, 2, 5), "projection: wanted .* with C = 4"),
        ("projection", torch.zeros(1, 3, 4), "projection: wanted .* with D = 2"),
        ("projection", None, r"kernel: wanted \[K, C, 3, 3\] with C = 4 .*given \[1, 2, 3, 3\]"),
        ("projection", torch.zeros(1, 2, 4).double(), "projection: wanted float32, given float64"),
        ("features", torch.zeros(1, 3, 4, 6, 7, dtype=torch.int32), "features: wanted float16"),
        ("targets", torch.zeros(1, 3, 6, 7, device="meta"), "targets: on meta"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: torch.Tensor | None, message: str) -> None:
    arguments = problem(noise(), 2)
    with pytest.raises(ShapeError, match=message):
        fit_target(**{**arguments, name: value})
    if name != "features" or value is None:
        return
    with pytest.raises(ShapeError, match=message):
        objective(**{**arguments, name: value})


def test_empty_grids_are_named() -> None:
    arguments = problem(noise(), 2)
    arguments["features"] = arguments["features"][:, :, :0]
    arguments["projection"] = arguments["projection"][:, :, :0]
    with pytest.raises(ShapeError, match="wanted at least one channel and one cell"):
        fit_target(**arguments)


def test_wrong_options_are_named() -> None:
    arguments = problem(noise(), 2)
    for iterations in ((), (0,), (5, -1)):
        with pytest.raises(ValueError, match=r"iterations: wanted 1 or more .* given \("):
            fit_target(**arguments, iterations=iterations)
    for ridge in ((0.0, 1.0), (1.0, -1.0), (1.0,), (float("inf"), 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="ridge: wanted two finite numbers above 0, given"):
            fit_target(**arguments, ridge=ridge)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_precision_is_computed_in_float64(dtype: torch.dtype) -> None:
    arguments = problem(noise(1, 3), 2, iterations=(3,))
    converted = {n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    wide = widened(converted)
    with use_backend("reference"):
        for got, wanted in zip(fit_target(**converted), fit_target(**wide), strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, wanted.to(dtype))
    del converted["iterations"], wide["iterations"]
    assert torch.equal(objective(**converted), objective(**wide).float())
