"""`fit_target` on every backend and instruction set, against dense algebra and scipy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import op_backends
import pytest
import scipy.linalg
import scipy.optimize
import torch
from target_transcription import (
    Array,
    DenseTrack,
    bands_of_dense,
    dense_of_bands,
    upsampling_matrix,
)
from torch.nn import functional

from vosengine.kernels import fit_target
from vosengine.kernels.extension import missing
from vosengine.kernels.fit_target import objective, reduce_labels
from vosengine.kernels.parity import widened

Arguments = dict[str, Any]

needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))
realistic_or_not = pytest.mark.parametrize("realistic", [True, False], ids=["scene", "noise"])
joint_or_not = pytest.mark.parametrize("joint", [True, False], ids=["both layers", "kernel"])


@pytest.fixture(params=op_backends.names_of(fit_target))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def noise(
    tracks: int = 1, samples: int = 3, channels: int = 4, cells: tuple[int, int] = (6, 7)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [K, J, C, h, w], and labels and pixel weights [K, J, H, W], without structure."""
    draw = torch.Generator().manual_seed(5)
    features = torch.randn(tracks, samples, channels, *cells, generator=draw)
    size = (tracks, samples, 5 * cells[0] + 1, 4 * cells[1] + 3)
    return features, torch.rand(size, generator=draw), torch.rand(size, generator=draw)


def scene(
    tracks: int = 1, samples: int = 3, channels: int = 4, cells: tuple[int, int] = (6, 7)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for a disc that moves over a background, with smooth, nonnegative features like a
    network's, of equal magnitude on disc and background.
    """
    draw = torch.Generator().manual_seed(6)
    size = (5 * cells[0] + 1, 4 * cells[1] + 3)
    y, x = torch.linspace(-1, 1, size[0])[:, None], torch.linspace(-1, 1, size[1])
    centre = 0.3 * torch.randn(2, tracks, samples, 1, 1, generator=draw)
    labels = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 0.25).float()
    inside = functional.interpolate(labels, size=cells, mode="bilinear", antialias=True)
    looks = torch.randn(2, tracks, 1, channels, 1, 1, generator=draw)
    coarse = torch.randn(tracks * samples, channels, 3, 3, generator=draw)
    texture = functional.interpolate(coarse, size=cells, mode="bilinear")
    shades = looks[0] * inside[:, :, None] + looks[1] * (1 - inside[:, :, None])
    grain = torch.randn(tracks, samples, channels, *cells, generator=draw)
    features = (shades + 0.6 * texture.unflatten(0, (tracks, samples)) + 0.2 * grain).relu()
    share = labels.mean(dim=(2, 3), keepdim=True)
    influence = share.clamp(min=0.1)
    weights = torch.where(labels > 0, influence / share, (1 - influence) / (1 - share)).sqrt()
    return features, labels, weights


def problem(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor], maps: int | None = None, **options: Any
) -> Arguments:
    """A call of fit_target; with `maps`, both layers."""
    features, labels, pixel_weights = data
    draw = torch.Generator().manual_seed(7)
    tracks, samples, channels, *cells = features.shape
    bands, targets, _ = reduce_labels(labels, pixel_weights, (cells[0], cells[1]))
    weight = torch.rand(tracks, samples, generator=draw) + 0.2
    arguments = {
        "features": features,
        "bands": bands,
        "targets": targets,
        "sample_weight": weight / weight.sum(dim=1, keepdim=True),
        "kernel": 0.1 * torch.randn(tracks, maps or channels, 3, 3, generator=draw),
    }
    if maps is not None:
        projection = torch.randn(tracks, maps, channels, generator=draw)
        arguments["projection"] = projection / channels**0.5
    return {**arguments, **options}


def flat(outputs: tuple[torch.Tensor, torch.Tensor | None], track: int = 0) -> Array:
    parts = [part[track].flatten() for part in outputs if part is not None]
    return torch.cat(parts).double().numpy()


def with_weights(arguments: Arguments, outputs: Any) -> Arguments:
    """Return the arguments of `objective` with fitted weights."""
    new = {**arguments, **dict(zip(("kernel", "projection"), outputs, strict=True))}
    return {name: value for name, value in new.items() if name != "iterations"}


def loss_of(arguments: Arguments, outputs: Any) -> torch.Tensor:
    return objective(**widened(with_weights(arguments, outputs)))


def optimum(track: DenseTrack) -> Array:
    """Return the minimiser of the objective, if only the kernel is fitted."""
    matrix, right = track.normal_equations(track.start)
    return track.start + scipy.linalg.solve(matrix, right, assume_a="pos")


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((5, 7), (37, 41)),
        ((6, 4), (48, 33)),
        ((1, 4), (9, 30)),
        ((3, 1), (8, 5)),
        ((1, 1), (4, 6)),
        ((4, 5), (4, 5)),
        ((7, 6), (5, 4)),
    ],
    ids=str,
)
def test_reduced_labels_are_the_dense_operator(
    cells: tuple[int, int], size: tuple[int, int]
) -> None:
    draw = torch.Generator().manual_seed(3)
    labels, weights = torch.rand(2, 2, *size, generator=draw, dtype=torch.float64)
    bands, targets, constant = reduce_labels(labels, weights, cells)
    up = upsampling_matrix(cells, size)
    for i in range(2):
        squares, y = weights[i].flatten().numpy() ** 2, labels[i].flatten().numpy()
        dense = up.T @ (squares[:, None] * up)
        np.testing.assert_allclose(dense_of_bands(bands[i]), dense, rtol=0, atol=1e-13)
        np.testing.assert_allclose(bands[i], bands_of_dense(dense, *cells), rtol=0, atol=1e-13)
        np.testing.assert_allclose(targets[i].flatten(), up.T @ (squares * y), rtol=0, atol=1e-13)
        np.testing.assert_allclose(constant[i], squares @ y**2, rtol=1e-13)
    for half, whole in zip(
        reduce_labels(labels.half(), weights.half(), cells),
        reduce_labels(labels.half().float(), weights.half().float(), cells),
        strict=True,
    ):
        assert half.dtype == torch.float32
        assert torch.equal(half, whole)


@joint_or_not
@pytest.mark.parametrize("iterations", [(1,), (2,), (4,), (3, 2)], ids=str)
@pytest.mark.slow
def test_iterates_are_the_algorithm_s(
    backend: str, iterations: tuple[int, ...], joint: bool
) -> None:
    """In float32 the only error is the rounding of the result."""
    for cells in ((4, 5), (1, 6), (3, 1)):
        data = noise(2, 8, 3, cells)
        arguments = problem(data, 2 if joint else None, iterations=iterations)
        got = fit_target(**arguments)
        for track in range(2):
            truth = DenseTrack(arguments, track).fit(iterations)
            np.testing.assert_allclose(flat(got, track), truth, rtol=2**-24, atol=1e-9)


@joint_or_not
@realistic_or_not
def test_double_precision_is_the_algorithm_exactly(realistic: bool, joint: bool) -> None:
    data = (scene if realistic else noise)(1, 2, 5, (4, 5))
    arguments = problem(data, 2 if joint else None, iterations=(3, 4), ridge=(0.3, 0.02))
    truth = DenseTrack(arguments, 0).fit((3, 4))
    got = fit_target(**widened(arguments))
    np.testing.assert_allclose(flat(got), truth, rtol=0, atol=1e-7 * np.abs(truth).max())


@joint_or_not
def test_objective_is_the_squared_error_at_label_size(joint: bool) -> None:
    features, labels, pixel_weights = (x.double() for x in scene(2, 3, 5))
    arguments = widened(problem((features, labels, pixel_weights), 2 if joint else None))
    constant = reduce_labels(labels, pixel_weights, features.shape[3:])[2]
    weight = arguments["sample_weight"]
    for track in range(2):
        dense = DenseTrack(arguments, track)
        expected = float(dense.ridge @ dense.start**2)
        for j, scores in enumerate(dense.scores(dense.start)):
            up = upsampling_matrix(features.shape[3:], labels.shape[2:]) @ scores
            error = pixel_weights[track, j].flatten().numpy() * (
                up - labels[track, j].flatten().numpy()
            )
            expected += float(weight[track, j]) * float(error @ error)
        got = objective(**arguments)[track] + weight[track] @ constant[track]
        assert float(got) == pytest.approx(expected, rel=1e-12)


def test_many_iterations_solve_the_normal_equations(backend: str) -> None:
    arguments = problem(noise(2), iterations=(100,))
    got = fit_target(**arguments)
    exact = fit_target.reference(**widened(arguments))
    for track in range(2):
        truth = optimum(DenseTrack(arguments, track))
        np.testing.assert_allclose(flat(exact, track), truth, rtol=0, atol=1e-12)
        np.testing.assert_allclose(flat(got, track), truth, rtol=2**-24, atol=1e-9)


@realistic_or_not
def test_ten_iterations_come_near_the_optimum(backend: str, realistic: bool) -> None:
    """On a scene ten iterations from any start leave 1 % of the distance, a property of CG."""
    arguments = problem((scene if realistic else noise)(1, 5, 8, (12, 13)), iterations=(10,))
    track = DenseTrack(arguments, 0)
    least = track.objective(optimum(track))
    way = track.objective(track.start) - least
    left = track.objective(flat(fit_target(**arguments))) - least
    assert left < (2e-2 if realistic else 1e-5) * way
    # Rounding costs less than two iterations, however far the weights themselves have moved.
    earlier = fit_target.reference(**widened({**arguments, "iterations": (8,)}))
    assert left < track.objective(flat(earlier)) - least


@pytest.mark.slow
def test_step_of_both_layers_solves_the_problem_at_label_size() -> None:
    """The Gauss-Newton step from autograd's Jacobian of the residuals at every pixel."""
    features, labels, pixel_weights = (x.double() for x in scene(1, 2, 5, (5, 4)))
    ridge = (0.5, 0.25)
    arguments = widened(problem((features, labels, pixel_weights), 2, ridge=ridge))
    kernel, projection = arguments["kernel"][0], arguments["projection"][0]
    factor = arguments["sample_weight"][0].sqrt()[:, None, None] * pixel_weights[0]

    def residuals(weights: torch.Tensor) -> torch.Tensor:
        second = weights[: kernel.numel()].view_as(kernel)
        first = weights[kernel.numel() :].view_as(projection)
        maps = functional.conv2d(features[0], first[:, :, None, None])
        scores = functional.conv2d(maps, second[None], padding=1)
        up = functional.interpolate(scores, size=labels.shape[2:], mode="bilinear")
        data = factor * (up[:, 0] - labels[0])
        decay = (ridge[1] ** 0.5 * second.flatten(), ridge[0] ** 0.5 * first.flatten())
        return torch.cat((data.flatten(), *decay))

    start = torch.cat((kernel.flatten(), projection.flatten()))
    jacobian = torch.autograd.functional.jacobian(residuals, start)
    step = torch.linalg.lstsq(jacobian, -residuals(start)).solution
    got = fit_target(**arguments, iterations=(1000,))
    np.testing.assert_allclose(flat(got), (start + step).numpy(), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_both_layers_come_near_what_least_squares_finds(
    backend: str, two_layers: tuple[Arguments, float, float]
) -> None:
    """Full Gauss-Newton steps on a product of two layers are not sure to descend (from other
    starts they do not, in any precision); here they do, and end within a hundredth of the way.
    """
    arguments, start, least = two_layers
    counts = (5, 10, 10, 10, 10)
    fits = [fit_target(**arguments, iterations=counts[:steps]) for steps in range(1, 6)]
    losses = [float(loss_of(arguments, fit)) for fit in fits]
    assert all(after < before for before, after in zip([start, *losses], losses, strict=False))
    assert least < losses[-1] < least + 1e-2 * (start - least)


@pytest.mark.slow
def test_both_layers_converge_to_what_least_squares_finds(
    two_layers: tuple[Arguments, float, float],
) -> None:
    """With early stopping: exactly solved full steps may overshoot."""
    arguments, start, least = two_layers
    got = float(loss_of(arguments, fit_target(**widened(arguments), iterations=(30,) * 20)))
    assert abs(got - least) < 1e-3 * (start - least)


@pytest.mark.parametrize("joint", [False, True])
def test_the_last_bits_of_the_features_stay_last_bits(joint: bool) -> None:
    """Conjugate gradients that lose orthogonality would amplify them to 1e-2 here."""
    arguments = problem(scene(2, 5, 24, (9, 9)), 8 if joint else None, iterations=(12, 12))
    features = arguments["features"]
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    nudged = {**arguments, "features": features * (1 + 1e-6 * noise)}
    fits = [fit_target(**case)[0] for case in (arguments, nudged)]
    change = (fits[0] - fits[1]).abs().max() / fits[0].abs().max()
    assert 0 < change < 1e-4


@pytest.fixture(scope="module")
def two_layers() -> tuple[Arguments, float, float]:
    """A call, its objective, and that of the minimum that scipy finds from the same start."""
    arguments = problem(scene(1, 6, 8, (7, 7)), 4)
    track = DenseTrack(arguments, 0)
    return arguments, track.objective(track.start), least_squares_objective(track)


def least_squares_objective(track: DenseTrack) -> float:
    pairs = list(zip(track.forms, track.targets, strict=True))
    aims = [np.linalg.solve(form, target) for form, target in pairs]
    roots = [np.linalg.cholesky(form).T for form in track.forms]

    def residuals(weights: Array) -> Array:
        errors = zip(track.weight, roots, track.scores(weights), aims, strict=True)
        parts = [weight**0.5 * root @ (scores - aim) for weight, root, scores, aim in errors]
        return np.concatenate([*parts, track.ridge**0.5 * weights])

    solution = scipy.optimize.least_squares(residuals, track.start, max_nfev=25)
    return track.objective(solution.x)


@joint_or_not
def test_tracks_do_not_meet(backend: str, joint: bool) -> None:
    arguments = problem(noise(3, 4, 5), 2 if joint else None, iterations=(3, 3))
    together = fit_target(**arguments)
    for track in range(3):
        one = {
            name: value[track : track + 1] if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        alone = flat(fit_target(**one))
        np.testing.assert_allclose(alone, flat(together, track), rtol=2**-23, atol=1e-9)


@joint_or_not
def test_a_weight_of_zero_is_an_absent_sample(backend: str, joint: bool) -> None:
    arguments = problem(noise(2, 5), 2 if joint else None, iterations=(3, 3))
    arguments["sample_weight"][:, [0, 3]] = 0
    names = ("features", "bands", "targets", "sample_weight")
    present = {**arguments, **{name: arguments[name][:, [1, 2, 4]] for name in names}}
    arguments["features"][:, 3] = 1e6
    wanted = fit_target.reference(**widened(present))
    for got, plain, truth in zip(
        fit_target(**arguments), fit_target.reference(**present), wanted, strict=True
    ):
        if truth is not None:
            op_backends.assert_near(got, plain, truth)


@joint_or_not
@pytest.mark.parametrize("samples", [0, 2])
def test_without_data_the_ridge_is_left(backend: str, samples: int, joint: bool) -> None:
    arguments = problem(noise(2, 2), 3 if joint else None, iterations=(2, 2))
    for name in ("features", "bands", "targets", "sample_weight"):
        arguments[name] = arguments[name][:, :samples].clone()
    arguments["sample_weight"].zero_()
    for part in fit_target(**arguments):
        if part is not None:
            assert part.abs().max() < 1e-6


def test_nothing_to_do_is_not_a_division_by_zero(backend: str) -> None:
    """Targets and weights of 0 have a residual of 0; the other track is fitted normally."""
    arguments = problem(noise(2, 3), iterations=(4, 4))
    arguments["targets"][0] = 0
    arguments["kernel"][0] = 0
    kernel, _ = fit_target(**arguments)
    assert torch.equal(kernel[0], torch.zeros_like(kernel[0]))
    alone = {n: v[1:] if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    torch.testing.assert_close(kernel[1:], fit_target(**alone)[0])


def test_background_alone_shrinks_the_kernel(backend: str) -> None:
    features, labels, weights = noise(1, 3)
    arguments = problem((features, torch.zeros_like(labels), weights), iterations=(20,))
    kernel, _ = fit_target(**arguments)
    assert kernel.abs().max() < 1e-3 * arguments["kernel"].abs().max()


@joint_or_not
def test_a_nan_spoils_its_own_track_alone(backend: str, joint: bool) -> None:
    for name in ("features", "bands", "targets", "sample_weight", "kernel"):
        arguments = problem(noise(2, 3), 2 if joint else None, iterations=(2,))
        arguments[name].view(2, -1)[1, 0] = torch.nan
        for part in fit_target(**arguments):
            if part is not None:
                assert torch.isfinite(part[0]).all()
                assert part[1].isnan().any()
