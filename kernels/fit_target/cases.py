"""The calls of `fit_target` that every backend is tested, self-tested and timed on.

Features here have mean 0. If all are positive, the mean makes one eigenvalue a thousand times the
next and conjugate gradients lose orthogonality: rounding errors grow a hundredfold per iteration
from the fourth on, and after ten, even in float64, the weights of two orders of summation may
differ in the third digit. A rule for weights cannot test that; tests/kernels/test_fit_target.py
compares the objective instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..cases import Case, Make
from .labels import reduce_labels


def _smooth(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Spatially smooth features of magnitude 1."""
    *outer, height, width = shape
    count = torch.Size(outer).numel()
    if count == 0:
        return torch.zeros(shape)
    coarse = torch.randn(1, count, 2 + height // 4, 2 + width // 4, generator=generator)
    fields = functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.randn(count, height, width, generator=generator)
    return (1.5 * fields[0] + 0.3 * noise).view(shape)


def _blobs(*shape: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Ellipses as labels [*, H, W], and pixel weights that give them at least 10 % of the sum."""
    *outer, height, width = shape
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)
    place = torch.rand(4, *outer, 1, 1, generator=generator)
    radius = 0.2 + 0.4 * place[2:]
    inside = ((y - place[0] + 0.5) / radius[0]) ** 2 + ((x - place[1] + 0.5) / radius[1]) ** 2 < 1
    labels = inside.float()
    share = labels.mean(dim=(-2, -1), keepdim=True).clamp(1e-3, 1 - 1e-3)
    influence = share.clamp(min=0.1)
    weights = torch.where(inside, influence / share, (1 - influence) / (1 - share))
    return labels, weights.sqrt()


def _tracks(
    tracks: int,
    samples: int,
    channels: int,
    height: int,
    width: int,
    *,
    maps: int | None = None,
    random: bool = False,
    scale: int = 8,
    **options: Any,
) -> Make:
    """Tracks with samples. `maps`: channels D, both layers are fitted. `random`: noise."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        grid = (tracks, samples, channels, height, width)
        size = (tracks, samples, scale * height + 1, scale * width + 1)
        if random:
            features = torch.randn(grid, generator=generator)
            labels, weights = torch.rand(2, *size, generator=generator)
        else:
            features = _smooth(*grid, generator=generator)
            labels, weights = _blobs(*size, generator=generator)
        bands, targets, _ = reduce_labels(labels, weights, (height, width))
        sample_weight = torch.rand(tracks, samples, generator=generator) + 0.1
        arguments = {
            "features": features,
            "bands": bands / scale**2,
            "targets": targets / scale**2,
            "sample_weight": sample_weight / sample_weight.sum(dim=1, keepdim=True),
            "kernel": 0.03 * torch.randn(tracks, maps or channels, 3, 3, generator=generator),
        }
        if maps is not None:
            projection = torch.randn(tracks, maps, channels, generator=generator)
            arguments["projection"] = projection / channels**0.5
        return {**arguments, **options}

    return make


def _with_weights(make: Make, *weights: float) -> Make:
    """Every track with these sample weights."""

    def changed(generator: torch.Generator) -> dict[str, Any]:
        arguments = make(generator)
        arguments["sample_weight"][:] = torch.tensor(weights)
        return arguments

    return changed


def _prefix(make: Make, count: int) -> Make:
    """The first samples of larger buffers, as views."""

    def changed(generator: torch.Generator) -> dict[str, Any]:
        arguments = make(generator)
        for name in ("features", "bands", "targets", "sample_weight"):
            arguments[name] = arguments[name][:, :count]
        return arguments

    return changed


def _transposed(make: Make) -> Make:
    """Features with a non-contiguous grid."""

    def changed(generator: torch.Generator) -> dict[str, Any]:
        arguments = make(generator)
        arguments["features"] = arguments["features"].mT.contiguous().mT
        return arguments

    return changed


CASES = (
    Case("kernel", _tracks(1, 8, 24, 13, 15)),
    Case("kernel, random", _tracks(2, 4, 9, 10, 11, random=True)),
    Case("kernel, three steps", _tracks(2, 3, 8, 9, 7, iterations=(2, 3, 4))),
    Case("both layers", _tracks(1, 5, 40, 12, 13, maps=12, iterations=(5, 10))),
    Case("both layers, random", _tracks(2, 4, 17, 9, 9, maps=3, random=True, iterations=(3, 4))),
    Case("both layers, many samples", _tracks(3, 20, 19, 6, 7, maps=5, iterations=(5,))),
    Case("a prefix of a buffer", _prefix(_tracks(2, 12, 7, 8, 9, random=True), 5)),
    Case("a grid that is not contiguous", _transposed(_tracks(1, 3, 6, 8, 9, random=True))),
    Case("weights of 0", _with_weights(_tracks(2, 4, 5, 8, 8, random=True), 0.0, 0.7, 0.0, 0.3)),
    Case("only weights of 0", _with_weights(_tracks(2, 2, 8, 8, 8), 0.0, 0.0)),
    Case("only weights of 0, both layers", _with_weights(_tracks(1, 1, 8, 5, 5, maps=3), 0.0)),
    Case("no samples", _tracks(2, 0, 8, 8, 8)),
    Case("no tracks", _tracks(0, 3, 8, 8, 8, maps=4)),
    Case("one cell", _tracks(1, 2, 5, 1, 1)),
    Case("one row", _tracks(1, 3, 6, 1, 37, random=True)),
    Case("one column", _tracks(1, 3, 6, 50, 1, maps=4, iterations=(3,))),
    Case("one channel", _tracks(1, 2, 1, 6, 6, iterations=(4,))),
    Case("one track, 80 samples", _tracks(1, 80, 96, 30, 30, random=True, scale=4), bench=True),
    Case("five tracks, 80 samples", _tracks(5, 80, 96, 30, 30, random=True, scale=4), bench=True),
    Case(
        "birth",
        _tracks(1, 5, 1024, 30, 30, maps=96, scale=4, iterations=(5, 10, 10, 10, 10)),
        bench=True,
    ),
)
