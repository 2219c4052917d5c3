"""`correlate_frames` on every backend and instruction set, against independent implementations."""

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
    correlate_frames,
    use_backend,
)
from vosengine.kernels.correlate_frames.cases import CASES
from vosengine.kernels.extension import missing
from vosengine.kernels.parity import widened

Arguments = dict[str, Any]

either_outside = pytest.mark.parametrize("outside", ["zero", "exclude"])
needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(params=op_backends.names_of(correlate_frames))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frames(*shape: int) -> Arguments:
    return {"query": draw(*shape, seed=1), "previous": draw(*shape, seed=2)}


def formula(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    """The docstring's three lines as numpy loops in float64."""
    q, p = query.double().numpy(), previous.double().numpy()
    batch, _, height, width = q.shape
    out = np.zeros((batch, 3, height, width))
    for b, y, x in np.ndindex(batch, height, width):
        here, offsets, cosines = q[b, :, y, x], [], []
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                inside = 0 <= y + dy < height and 0 <= x + dx < width
                if not inside and outside == "exclude":
                    continue
                there = p[b, :, y + dy, x + dx] if inside else np.zeros_like(here)
                norms = max(np.linalg.norm(here), 1e-12) * max(np.linalg.norm(there), 1e-12)
                cosines.append(here @ there / norms)
                offsets.append((dx, dy))
        weights = np.exp(temperature * np.array(cosines) - np.max(temperature * np.array(cosines)))
        out[b, :2, y, x] = weights / weights.sum() @ np.array(offsets)
        out[b, 2, y, x] = max(cosines)
    return torch.from_numpy(out)


def unfolded(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    """The op by torch's unfold, in float64."""
    height, width = query.shape[2:]
    side = 2 * radius + 1
    q, p = (functional.normalize(x.double(), dim=1) for x in (query, previous))

    def windows(x: torch.Tensor) -> torch.Tensor:
        return functional.unfold(x, side, padding=radius).unflatten(1, (-1, side * side))

    cosines = torch.einsum("bcn,bcun->bun", q.flatten(2), windows(p))
    scores = temperature * cosines
    if outside == "exclude":
        beyond = windows(torch.ones(1, 1, height, width).double())[:, 0] == 0
        cosines = cosines.masked_fill(beyond, -torch.inf)
        scores = scores.masked_fill(beyond, -torch.inf)
    weights = scores.softmax(dim=1).unflatten(1, (side, side))
    steps = torch.arange(-radius, radius + 1).double()
    d_x, d_y = weights.sum(1).mT @ steps, weights.sum(2).mT @ steps
    return torch.stack((d_x, d_y, cosines.amax(1)), dim=1).unflatten(2, (height, width))


def assert_matches(arguments: Arguments, truth: torch.Tensor) -> None:
    plain = correlate_frames.reference(**arguments)
    op_backends.assert_near(correlate_frames(**arguments), plain, truth)


@either_outside
@pytest.mark.parametrize("temperature", [20.0, -1.0, 0.0])
def test_follows_the_formula(backend: str, outside: str, temperature: float) -> None:
    options = {"radius": 3, "temperature": temperature, "outside": outside}
    for shape in ((1, 5, 4, 6), (2, 8, 7, 3), (1, 1, 1, 9)):
        arguments = frames(*shape) | options
        assert_matches(arguments, formula(**arguments))


@pytest.mark.parametrize("case", [c for c in CASES if not c.bench], ids=lambda case: case.name)
def test_is_a_softmax_over_unfolded_windows(backend: str, case: Any) -> None:
    arguments = case.arguments()
    if arguments["query"].shape[0] == 0:
        assert correlate_frames(**arguments).shape == (0, 3, 7, 10)
    else:
        assert_matches(arguments, unfolded(**arguments))


def test_the_witnesses_agree() -> None:
    for outside in ("zero", "exclude"):
        arguments = frames(2, 6, 5, 7) | {"radius": 4, "outside": outside}
        torch.testing.assert_close(unfolded(**arguments), formula(**arguments))


@either_outside
@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-4, 5)], ids=str)
def test_finds_where_every_cell_came_from(
    backend: str, outside: str, shift: tuple[int, int]
) -> None:
    """previous[x + d] = query[x]: d points from the cell now to where it was a frame before."""
    dx, dy = shift
    query = draw(1, 32, 16, 20)
    previous = torch.roll(query, (dy, dx), dims=(2, 3))
    out = correlate_frames(query=query, previous=previous, radius=6, temperature=50.0,
        outside=outside,
    )  # fmt: skip
    inner = out[0, :, 6:-6, 6:-6]  # where neither the roll nor the border interferes
    assert (inner[0] - dx).abs().max() < 0.01
    assert (inner[1] - dy).abs().max() < 0.01
    assert (inner[2] - 1).abs().max() < 1e-5


def test_lengths_of_vectors_do_not_matter(backend: str) -> None:
    arguments = frames(1, 16, 6, 9)
    scaled = {
        name: value * torch.exp(3 * draw(1, 1, 6, 9, seed=3)) for name, value in arguments.items()
    }
    assert_matches(scaled | {"radius": 3}, unfolded(**arguments, radius=3))


def test_zero_vectors_match_nothing(backend: str) -> None:
    """C = 0 everywhere gives a uniform softmax, whose mean is 0 over the whole window."""
    arguments = frames(1, 8, 5, 6) | {"radius": 2}
    arguments["query"] = torch.zeros(1, 8, 5, 6)
    out = correlate_frames(**arguments)
    torch.testing.assert_close(out, torch.zeros(1, 3, 5, 6), rtol=0, atol=1e-6)
    out = correlate_frames(**arguments, outside="exclude")
    assert out[0, :, 0, 0].tolist() == pytest.approx([1, 1, 0], abs=1e-6)  # of 0, 1, 2 both ways
    assert out[0, :, 2, 2].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert out[0, :, 4, 5].tolist() == pytest.approx([-1, -1, 0], abs=1e-6)


def test_outside_differs_at_the_border_only(backend: str) -> None:
    arguments = frames(1, 16, 12, 13) | {"radius": 3}
    zero = correlate_frames(**arguments, outside="zero")
    exclude = correlate_frames(**arguments, outside="exclude")
    torch.testing.assert_close(zero[..., 3:-3, 3:-3], exclude[..., 3:-3, 3:-3])
    assert (zero - exclude).abs().amax(dim=1)[0, 0].min() > 1e-5


def test_confidence_of_opposites_is_zero_or_negative(backend: str) -> None:
    """If nothing inside matches, a candidate beyond the frame has the maximum: C = 0 > C = -1."""
    query = draw(1, 8, 1, 1).expand(-1, -1, 4, 4)
    arguments = {"query": query, "previous": -query, "radius": 4}
    zero = correlate_frames(**arguments, outside="zero")
    assert torch.equal(zero[:, 2], torch.zeros(1, 4, 4))
    exclude = correlate_frames(**arguments, outside="exclude")
    torch.testing.assert_close(exclude[:, 2], torch.full((1, 4, 4), -1.0))


@either_outside
def test_a_negative_temperature_seeks_the_opposite(backend: str, outside: str) -> None:
    query, previous = frames(1, 16, 6, 9).values()
    options = {"radius": 3, "outside": outside}
    minimum = correlate_frames(query=query, previous=previous, temperature=-20.0, **options)
    maximum = correlate_frames(query=-query, previous=previous, temperature=20.0, **options)
    torch.testing.assert_close(minimum[:, :2], maximum[:, :2], rtol=0, atol=1e-5)
    assert (minimum[:, 2] - maximum[:, 2]).abs().max() > 0.01  # the confidence stays a maximum


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_temperature_may_be_a_tensor(backend: str, shape: tuple[int, ...]) -> None:
    arguments = frames(1, 16, 6, 9) | {"radius": 3}
    number = correlate_frames(**arguments, temperature=7.5)
    tensor = correlate_frames(**arguments, temperature=torch.full(shape, 7.5))
    torch.testing.assert_close(tensor, number, rtol=0, atol=0)


def test_strides_do_not_matter_and_inputs_stay(backend: str) -> None:
    wide = {name: draw(2, 6, 11, 20, seed=seed) for seed, name in enumerate(("query", "previous"))}
    views = {name: value.transpose(1, 3)[..., 1:-2, ::2] for name, value in wide.items()}
    copies = {name: value.contiguous() for name, value in views.items()}
    out = correlate_frames(**views, radius=3)
    assert out.is_contiguous()
    torch.testing.assert_close(out, correlate_frames(**copies, radius=3))
    assert all(torch.equal(views[name], copies[name]) for name in views)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
def test_a_nan_is_not_hidden(backend: str) -> None:
    """A NaN in the query affects its own cell, one in the previous frame every window with it."""
    clean = frames(1, 8, 6, 9)
    for name, spoilt in (("query", 1), ("previous", 9)):
        arguments = {n: value.clone() for n, value in clean.items()}
        arguments[name][0, 3, 2, 4] = torch.nan
        out = correlate_frames(**arguments, radius=1)
        assert out.isnan().all(dim=1).sum() == spoilt
        assert out.isnan().any(dim=1).sum() == spoilt


@needs_extension
def test_the_compiled_backend_says_what_it_does_not_take() -> None:
    arguments = frames(1, 8, 5, 5)
    assert correlate_frames.explain(**arguments)["cpu"] is None
    wide = widened(arguments)
    assert (
        correlate_frames.explain(**wide)["cpu"]
        == "wants float32, bfloat16 or float16, given torch.float64"
    )
    with use_backend("cpu"), pytest.raises(UnsupportedBackend, match="wants float32"):
        correlate_frames(**wide)
    learned = arguments | {"temperature": torch.tensor(20.0, requires_grad=True)}
    assert "has no gradient" in str(correlate_frames.explain(**learned)["cpu"])


def test_the_triton_backend_says_what_it_does_not_take() -> None:
    arguments = frames(1, 8, 5, 5)
    reason = correlate_frames.explain(**widened(arguments))["triton"]
    assert reason == "wants float16, bfloat16 or float32, given torch.float64"
    learned = arguments | {"temperature": torch.tensor(20.0, requires_grad=True)}
    assert "has no gradient" in str(correlate_frames.explain(**learned)["triton"])
    elsewhere = arguments | {"temperature": torch.tensor(20.0, device="meta")}
    reason = correlate_frames.explain(**elsewhere)["triton"]
    assert reason == "wants temperature on cpu, given it on meta"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("query", torch.zeros(8, 5, 5), r"query: wanted \[B, C, h, w\], given \[8, 5, 5\]"),
        ("previous", torch.zeros(1, 8, 5, 6), "previous: wanted .* with w = 5"),
        ("previous", torch.zeros(1, 7, 5, 5), "previous: wanted .* with C = 8"),
        ("previous", torch.zeros(2, 8, 5, 5), "previous: wanted .* with B = 1"),
        ("previous", torch.zeros(1, 8, 5, 5).double(), "previous: wanted float32, given float64"),
        ("previous", torch.zeros(1, 8, 5, 5, device="meta"), "previous: on meta"),
        ("query", torch.zeros(1, 8, 5, 5, dtype=torch.uint8), "query: wanted float16"),
        ("temperature", torch.zeros(2), r"temperature: wanted one number, given \[2\]"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        correlate_frames(**frames(1, 8, 5, 5) | {name: value})


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="radius: wanted 0 or more cells, given -1"):
        correlate_frames(**frames(1, 8, 5, 5), radius=-1)
    with pytest.raises(ValueError, match="outside: wanted one of zero, exclude, given 'reflect'"):
        correlate_frames(**frames(1, 8, 5, 5), outside="reflect")
