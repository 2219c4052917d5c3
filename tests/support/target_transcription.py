"""Independent float64 NumPy implementation of target models, with dense matrices and loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

Array = npt.NDArray[np.float64]


def upsampling_matrix(cells: tuple[int, int], size: tuple[int, int]) -> Array:
    """Return [H * W, h * w]: column i is torch's bilinear upsampling of the i-th unit grid."""
    count = cells[0] * cells[1]
    units = torch.eye(count, dtype=torch.float64).view(count, 1, *cells)
    up = functional.interpolate(units, size=size, mode="bilinear", align_corners=False)
    return up.flatten(1).T.numpy()


def dense_of_bands(bands: torch.Tensor) -> Array:
    """[9, h, w] -> N [h * w, h * w]"""
    _, height, width = bands.shape
    dense = np.zeros((height * width, height * width))
    for y, x, dy, dx in np.ndindex(height, width, 3, 3):
        to_y, to_x = y + dy - 1, x + dx - 1
        if 0 <= to_y < height and 0 <= to_x < width:
            dense[y * width + x, to_y * width + to_x] = bands[dy * 3 + dx, y, x]
    return dense


def bands_of_dense(dense: Array, height: int, width: int) -> Array:
    """Inverse of dense_of_bands, for a matrix without other entries."""
    bands = np.zeros((9, height, width))
    for y, x, dy, dx in np.ndindex(height, width, 3, 3):
        to_y, to_x = y + dy - 1, x + dx - 1
        if 0 <= to_y < height and 0 <= to_x < width:
            bands[dy * 3 + dx, y, x] = dense[y * width + x, to_y * width + to_x]
    return bands


def windows_of(maps: Array) -> Array:
    """[D, h, w] -> [h * w, D * 9]: the matrix that maps a flattened 3x3 kernel to its scores."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows.transpose(1, 2, 0, 3, 4).reshape(maps[0].size, -1)


class DenseTrack:
    """One track of a call of fit_target; weights are flattened: W2, then W1 if both are fitted."""

    def __init__(self, arguments: dict[str, Any], track: int) -> None:
        arrays = {
            name: value[track].double().numpy()
            for name, value in arguments.items()
            if isinstance(value, torch.Tensor)
        }
        self.features, self.weight = arrays["features"], arrays["sample_weight"]
        self.forms = [dense_of_bands(bands) for bands in arguments["bands"][track].double()]
        self.targets = arrays["targets"].reshape(len(self.forms), -1)
        self.kernel, self.projection = arrays["kernel"], arrays.get("projection")
        parts = [self.kernel] if self.projection is None else [self.kernel, self.projection]
        self.start = np.concatenate([part.ravel() for part in parts])
        low, high = arguments.get("ridge", (1e-4, 1e-2))
        self.ridge = np.full(self.start.shape, high)
        self.ridge[self.kernel.size :] = low

    def scores(self, weights: Array) -> list[Array]:
        kernel = weights[: self.kernel.size]
        maps = self.features
        if self.projection is not None:
            projection = weights[self.kernel.size :].reshape(self.projection.shape)
            maps = np.einsum("dc,jchw->jdhw", projection, maps)
        return [windows_of(sample) @ kernel for sample in maps]

    def jacobian(self, weights: Array) -> list[Array]:
        """Jacobian per sample [h * w, n], exact: scores are linear in each layer."""
        here = self.scores(weights)
        columns: list[list[Array]] = [[] for _ in here]
        for i in range(len(weights)):
            moved = weights.copy()
            moved[i] += 1
            for j, scores in enumerate(self.scores(moved)):
                columns[j].append(scores - here[j])
        return [np.stack(column, axis=1) for column in columns]

    def normal_equations(self, weights: Array) -> tuple[Array, Array]:
        """The matrix and the right-hand side of one Gauss-Newton step."""
        matrix, right = np.diag(self.ridge), -self.ridge * weights
        samples = zip(
            self.weight,
            self.forms,
            self.targets,
            self.scores(weights),
            self.jacobian(weights),
            strict=True,
        )
        for weight, form, target, scores, jacobian in samples:
            matrix = matrix + weight * jacobian.T @ form @ jacobian
            right = right - weight * jacobian.T @ (form @ scores - target)
        return matrix, right

    def objective(self, weights: Array) -> float:
        total = float(self.ridge @ weights**2)
        for weight, form, target, scores in zip(
            self.weight, self.forms, self.targets, self.scores(weights), strict=True
        ):
            total += weight * float(scores @ form @ scores - 2 * target @ scores)
        return total

    def fit(self, iterations: tuple[int, ...]) -> Array:
        """Gauss-Newton with the paper's optimiser, as in its authors' code."""
        weights = self.start
        for count in iterations:
            weights = weights + conjugate_gradients(
                *self.normal_equations(weights), self.ridge, count
            )
        return weights


def conjugate_gradients(matrix: Array, right: Array, diagonal: Array, iterations: int) -> Array:
    x, r = np.zeros_like(right), right.copy()
    p, r_previous, rho_previous = np.zeros_like(right), right, 1.0
    for number in range(iterations):
        z = r / diagonal
        rho = r @ z
        if rho == 0:
            return x
        beta = 0.0 if number == 0 else max(0.0, (rho - r_previous @ z) / rho_previous)
        p = z + beta * p
        q = matrix @ p
        alpha = rho / (p @ q)
        x, r_previous, r = x + alpha * p, r, r - alpha * q
        rho_previous = rho
    return x
