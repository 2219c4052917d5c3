"""`fit_target` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch.nn import functional

from ..shapes import FLOATS, ShapeError, check, check_dtype

CONVERGED = 1e-28  # ratio of the squared residual to the first one


def contract(
    features: torch.Tensor,
    bands: torch.Tensor,
    targets: torch.Tensor,
    sample_weight: torch.Tensor,
    kernel: torch.Tensor,
    projection: torch.Tensor | None = None,
    *,
    iterations: Sequence[int] = (10,),
    ridge: tuple[float, float] = (1e-4, 1e-2),
) -> None:
    arguments = {
        "features": (features, "K J C h w"),
        "bands": (bands, "K J 9 h w"),
        "targets": (targets, "K J h w"),
        "sample_weight": (sample_weight, "K J"),
    }
    if projection is None:
        arguments["kernel"] = (kernel, "K C 3 3")
    else:
        arguments["kernel"] = (kernel, "K D 3 3")
        arguments["projection"] = (projection, "K D C")
    check(arguments)
    check_dtype("features", features, *FLOATS)
    for name, (tensor, _) in arguments.items():
        check_dtype(name, tensor, features.dtype)
    if 0 in (*features.shape[2:], kernel.shape[1]):
        raise ShapeError(
            "features, kernel: wanted at least one channel and one cell, given "
            f"{list(features.shape)} and {list(kernel.shape)}"
        )
    if len(iterations) == 0 or min(iterations) < 1:
        raise ValueError(
            "iterations: wanted 1 or more for each of 1 or more Gauss-Newton steps, given "
            f"{tuple(iterations)}"
        )
    if len(ridge) != 2 or not all(value > 0 and math.isfinite(value) for value in ridge):
        raise ValueError(f"ridge: wanted two finite numbers above 0, given {tuple(ridge)}")


def fit_target(
    features: torch.Tensor,
    bands: torch.Tensor,
    targets: torch.Tensor,
    sample_weight: torch.Tensor,
    kernel: torch.Tensor,
    projection: torch.Tensor | None = None,
    *,
    iterations: Sequence[int] = (10,),
    ridge: tuple[float, float] = (1e-4, 1e-2),
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fit the two-layer linear score model of each track to its samples, by Gauss-Newton and CG.

        s_j(W) = W2 * (W1 * X_j)          W1 is 1x1, W2 is 3x3 with zero padding; no bias
        L(W)   = sum over j of a_j (s_j' N_j s_j - 2 b_j' s_j) + l1 |W1|^2 + l2 |W2|^2
        step   : (J' N J + Lambda) d = -(J' (N s - b) + Lambda W),  J = ds/dW,  W <- W + d

    Each step solves for d from d = 0 with conjugate gradients: preconditioned by the diagonal
    Lambda = (l1, l2), Polak-Ribiere with beta >= 0, restarted at every step. Residuals are
    orthogonal in exact arithmetic; rounding destroys that and amplifies differences of the features
    (a relative 1e-6 to 1e-2 of the kernel in two steps of 12), so every residual is
    re-orthogonalised against those before it. A track stops once its residual is 1e-14 of the
    step's first one (rounding level), or its residual or curvature is 0.

    features       [K, J, C, h, w]   X: J samples for each of K independent tracks
    bands          [K, J, 9, h, w]   N: row (y, x) in [.., y, x], its column (y + dy, x + dx) in
                                     [(dy + 1) * 3 + (dx + 1)]; N is symmetric; columns off the
                                     grid are ignored. See reduce_labels
    targets        [K, J, h, w]      b
    sample_weight  [K, J]            a >= 0; a sample of weight 0 has no effect, but must be
                                     finite. Not checked: that would synchronise with the host
    kernel         [K, D, 3, 3]      initial W2
    projection     [K, D, C]         initial W1, fitted together with W2; None: the features are
                                     W1 * X already (C = D), and only W2 is fitted
    iterations     CG iterations of each Gauss-Newton step
    ridge          (l1, l2), both above 0
    returns        [K, D, 3, 3]      W2; new
                   [K, D, C]         W1; new, or None where projection is None

    Dtype   float16, bfloat16, float32 or float64, one for all, computed in float64: conjugate
            gradients amplify rounding errors.
    Device  one for all; no synchronisation with the host.
    Empty   K = 0 returns empty tensors. J = 0, or weights that are all 0, leave only the ridge: the
            exact minimum is then 0.
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for an option.
    Source  Target-aware U-VOS, section 3.2, equations 8 and 9, with the optimiser of FRTM (Robinson
            et al., CVPR 2020, section 3.2); its direction-forget factor, 0.9^750, is taken as 0.
    """
    floats = (features, bands, targets, sample_weight, kernel)
    samples, forms, aims, weight, kernel_now = (tensor.double() for tensor in floats)
    projection_now = None if projection is None else projection.double()
    for count in iterations:
        model = _Linearised(samples, kernel_now, projection_now)
        diagonal = model.diagonal(ridge)
        error = _quadratic(forms, model.scores()) - aims
        gradient = model.adjoint(_weigh(weight, error)) + diagonal * model.weights()
        product = partial(_normal_product, model, forms, weight, diagonal)
        step = _conjugate_gradients(product, -gradient, diagonal, count)
        kernel_now, projection_now = model.split(model.weights() + step)
    if projection_now is not None:
        projection_now = projection_now.to(features.dtype).contiguous()
    return kernel_now.to(features.dtype).contiguous(), projection_now


def objective(
    features: torch.Tensor,
    bands: torch.Tensor,
    targets: torch.Tensor,
    sample_weight: torch.Tensor,
    kernel: torch.Tensor,
    projection: torch.Tensor | None = None,
    *,
    ridge: tuple[float, float] = (1e-4, 1e-2),
) -> torch.Tensor:
    """Objective L [K] that `fit_target` minimises, for the same arguments.

    The full squared error is L plus the sum over j of sample_weight times the third output of
    reduce_labels. Computed in float64 and returned in float32 (float64 for float64).

    Raises  ShapeError and ValueError as fit_target.
    """
    contract(features, bands, targets, sample_weight, kernel, projection, ridge=ridge)
    model = _Linearised(
        features.double(), kernel.double(), None if projection is None else projection.double()
    )
    scores = model.scores()
    error = _quadratic(bands.double(), scores) - 2 * targets.double()
    data = (sample_weight.double() * (scores * error).sum(dim=(2, 3))).sum(dim=1)
    total = data + (model.diagonal(ridge) * model.weights().square()).sum(dim=1)
    return total.to(torch.promote_types(features.dtype, torch.float32))


@dataclass(frozen=True)
class _Linearised:
    """Score model linearised at the current weights; `step` [K, n] is (W2, W1) flattened, or W2."""

    features: torch.Tensor
    kernel: torch.Tensor
    projection: torch.Tensor | None

    @cached_property
    def maps(self) -> torch.Tensor:
        """[K, J, D, h, w]: W1 * X"""
        if self.projection is None:
            return self.features
        return _project(self.features, self.projection)

    def scores(self) -> torch.Tensor:
        return _convolve(self.maps, self.kernel)

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        """Return J d by the product rule: d2 * (W1 * X) + W2 * (d1 * X)."""
        kernel, projection = self.split(step)
        change = _convolve(self.maps, kernel)
        if projection is not None:
            change = change + _convolve(_project(self.features, projection), self.kernel)
        return change

    def adjoint(self, change: torch.Tensor) -> torch.Tensor:
        """Return J' t: each operation of `forward` transposed."""
        kernel = _convolve_to_kernel(change, self.maps).flatten(1)
        if self.projection is None:
            return kernel
        spread = _convolve_to_maps(change, self.kernel)
        projection = (spread.flatten(3) @ self.features.flatten(3).mT).sum(dim=1)
        return torch.cat((kernel, projection.flatten(1)), dim=1)

    def weights(self) -> torch.Tensor:
        """[K, n]"""
        parts = (self.kernel,) if self.projection is None else (self.kernel, self.projection)
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def diagonal(self, ridge: tuple[float, float]) -> torch.Tensor:
        """[n]: Lambda"""
        kernel = self.kernel.new_full((self.kernel.shape[1:].numel(),), ridge[1])
        if self.projection is None:
            return kernel
        return torch.cat((kernel, kernel.new_full((self.projection.shape[1:].numel(),), ridge[0])))

    def split(self, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Split a step [K, n] into changes of W2 and W1."""
        size = self.kernel.shape[1:].numel()
        kernel = step[:, :size].reshape(self.kernel.shape)
        if self.projection is None:
            return kernel, None
        return kernel, step[:, size:].reshape(self.projection.shape)


def _project(features: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """[K, J, C, h, w], [K, D, C] -> [K, J, D, h, w]"""
    product = projection[:, None] @ features.flatten(3)
    return product.reshape(*product.shape[:3], *features.shape[3:])


def _views(grid: torch.Tensor) -> list[torch.Tensor]:
    """Return nine shifted views of a grid [.., h, w]: view (dy + 1) * 3 + (dx + 1) holds at (y, x)
    the value at (y + dy, x + dx), or 0 off the grid.
    """
    height, width = grid.shape[-2:]
    padded = functional.pad(grid, (1, 1, 1, 1))
    return [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]


def _convolve(maps: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """[K, J, D, h, w], [K, D, 3, 3] -> [K, J, h, w]: cross-correlation with zero padding, as the
    sum over taps of shifted products.
    """
    products = kernel.flatten(2).mT[:, None] @ maps.flatten(3)  # [K, J, 9, h * w]
    views = _views(products.reshape(*products.shape[:3], *maps.shape[3:]))
    return torch.stack([view[:, :, tap] for tap, view in enumerate(views)]).sum(dim=0)


def _convolve_to_kernel(change: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Transpose of `_convolve` with respect to the kernel: [K, D, 9]"""
    moved = torch.stack(_views(change)[::-1], dim=2).flatten(3)  # [K, J, 9, h * w]
    return (maps.flatten(3) @ moved.mT).sum(dim=1)


def _convolve_to_maps(change: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Transpose of `_convolve` with respect to the maps: [K, J, D, h, w]"""
    moved = torch.stack(_views(change)[::-1], dim=2).flatten(3)
    product = kernel.flatten(2)[:, None] @ moved
    return product.reshape(*product.shape[:3], *change.shape[2:])


def _quadratic(bands: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """N s: [K, J, 9, h, w], [K, J, h, w] -> [K, J, h, w]"""
    return (bands * torch.stack(_views(scores), dim=2)).sum(dim=2)


def _weigh(weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    return weight[:, :, None, None] * change


def _normal_product(
    model: _Linearised,
    bands: torch.Tensor,
    weight: torch.Tensor,
    diagonal: torch.Tensor,
    step: torch.Tensor,
) -> torch.Tensor:
    """(J' N J + Lambda) d: [K, n]"""
    curved = _weigh(weight, _quadratic(bands, model.forward(step)))
    return model.adjoint(curved) + diagonal * step


def _conjugate_gradients(
    product: Callable[[torch.Tensor], torch.Tensor],
    right: torch.Tensor,
    diagonal: torch.Tensor,
    iterations: int,
) -> torch.Tensor:
    """Run `iterations` of CG on A d = right [K, n] from d = 0, every track independently."""
    solution, residual, previous = torch.zeros_like(right), right, right
    direction, rho_before = torch.zeros_like(right), right.new_ones(len(right), 1)
    least = CONVERGED * _inner(right, right / diagonal)
    ended = torch.zeros_like(rho_before, dtype=torch.bool)
    before: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    for number in range(iterations):
        scaled = residual / diagonal
        rho = _inner(residual, scaled)
        ended = ended | (rho <= least)
        if number > 0:
            beta = ((rho - _inner(previous, scaled)) / rho_before).clamp(min=0)
            direction = torch.where(ended, direction, scaled + beta * direction)
        else:
            direction = scaled
        curved = product(direction)
        curvature = _inner(direction, curved)
        ended = ended | (curvature <= 0)
        alpha = torch.where(ended, 0, rho / curvature)
        solution = solution + alpha * direction
        before.append(residual)
        norms.append(rho)
        previous, residual = residual, residual - alpha * curved
        residual = residual - _shares_of(residual / diagonal, before, norms)
        rho_before = rho
    return solution


def _shares_of(
    scaled: torch.Tensor, before: list[torch.Tensor], norms: list[torch.Tensor]
) -> torch.Tensor:
    """Return the projection of a residual, divided by the diagonal [K, n], on earlier ones."""
    held, norm = torch.stack(before, dim=1), torch.cat(norms, dim=1)  # [K, m, n], [K, m]
    shares = (held * scaled[:, None]).sum(dim=2) / norm
    return (torch.where(norm > 0, shares, 0)[:, :, None] * held).sum(dim=1)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[K, 1]"""
    return (a * b).sum(dim=1, keepdim=True)
