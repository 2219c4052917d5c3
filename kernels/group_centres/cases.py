"""The calls of `group_centres` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make
from .reference import Groups

UNDECIDED = 2.0**-20  # relative difference of squared distances that the contract leaves open


def undecided(
    arguments: dict[str, Any], output64: Groups
) -> tuple[torch.Tensor, torch.Tensor | None, None]:
    """Return the mask of labels [B, H, W] that rounding may decide: the two smallest squared
    distances are equal within UNDECIDED in float64. Centres and scores have none.

    arguments  of the call, in any dtype
    output64   outputs of the reference in float64
    """
    _, centres, _ = output64
    offset = arguments["offset"].double()
    height, width = offset.shape[2:]
    y = torch.arange(height, device=offset.device)[:, None]
    x = torch.arange(width, device=offset.device)
    from_y = (y - centres[:, :, 0, None, None]) + offset[:, 0, None]
    from_x = (x - centres[:, :, 1, None, None]) + offset[:, 1, None]
    absent = centres[:, :, 0, None, None] < 0
    distances = (from_y.square() + from_x.square()).masked_fill(absent, torch.inf)
    if distances.shape[1] == 1:
        return torch.zeros_like(distances[:, 0], dtype=torch.bool), None, None
    least, second = distances.topk(2, dim=1, largest=False).values.unbind(dim=1)
    return second - least < UNDECIDED * second, None, None


def _noise(batch: int, height: int, width: int, **options: Any) -> Make:
    """Random heat, offsets of a few pixels, half of the pixels foreground."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        return {
            "heatmap": torch.rand(batch, height, width, generator=generator),
            "offset": 5 * torch.randn(batch, 2, height, width, generator=generator),
            "foreground": torch.rand(batch, height, width, generator=generator) < 0.5,
            **options,
        }

    return make


def _steps(levels: int, **options: Any) -> Make:
    """Heat in few levels and integer offsets, exact in float16: plateaus and ties."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        heat = torch.randint(levels, (2, 13, 21), generator=generator)
        offset = torch.randint(-4, 5, (2, 2, 13, 21), generator=generator)
        return {
            "heatmap": heat / 8,
            "offset": offset.float(),
            "foreground": torch.rand(2, 13, 21, generator=generator) < 0.8,
            **options,
        }

    return make


def _blobs(instances: int, height: int, width: int, **options: Any) -> Make:
    """Like a network's output: a Gaussian of sigma 10 for each instance, and a disc of foreground
    around it whose offsets point approximately to its peak."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        rows = max(1, round((instances * height / width) ** 0.5))
        columns = -(-instances // rows)
        cell = torch.arange(instances)
        size = torch.tensor([height / rows, width / columns])
        place = torch.stack((cell // columns, cell % columns), dim=1) + 0.5
        tops = (place + 0.3 * (torch.rand(instances, 2, generator=generator) - 0.5)) * size
        peaks = 0.3 + 0.7 * torch.rand(instances, generator=generator)
        y = torch.arange(height, dtype=torch.float32)[:, None]
        x = torch.arange(width, dtype=torch.float32)
        from_top = torch.stack(
            ((tops[:, 0, None, None] - y).expand(-1, -1, width),
             (tops[:, 1, None, None] - x).expand(-1, height, -1)), dim=1,
        )  # fmt: skip
        squares = from_top.square().sum(dim=1)
        hills = peaks[:, None, None] * torch.exp(-squares / 200)
        owner = squares.argmin(dim=0).expand(1, 2, height, width)
        noise = 3 * torch.randn(2, height, width, generator=generator)
        disc = 0.3 * height * width / instances / torch.pi  # squared radius: 30 % is foreground
        return {
            "heatmap": hills.amax(dim=0)[None],
            "offset": (from_top.gather(0, owner)[0] + noise)[None],
            "foreground": (squares.amin(dim=0) < disc)[None],
            **options,
        }

    return make


def _strided(generator: torch.Generator) -> dict[str, Any]:
    """Crops of larger maps, the offsets channels last."""
    arguments = _noise(2, 20, 40)(generator)
    offset = arguments["offset"].contiguous(memory_format=torch.channels_last)
    return {
        "heatmap": arguments["heatmap"][:, 3:17, 4:31],
        "offset": offset[:, :, 3:17, 4:31],
        "foreground": arguments["foreground"][:, 3:17, 4:31],
    }


def _rising(height: int, width: int, **options: Any) -> Make:
    """Heat that rises in reading order: with window 1 every cell is a new maximum."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _noise(1, height, width)(generator)
        heat = torch.arange(1, 1 + height * width).view(1, height, width) / 2048
        return arguments | {"heatmap": heat, "window": 1, **options}

    return make


def _left_parts(generator: torch.Generator) -> dict[str, Any]:
    """Left parts of wider maps: rows are not contiguous, but start at multiples of 16."""
    return {name: tensor[..., :16] for name, tensor in _noise(2, 12, 20)(generator).items()}


def _odd_slices(generator: torch.Generator) -> dict[str, Any]:
    """Contiguous maps at odd addresses; the pixels of an image are a multiple of 4."""
    arguments = _noise(2, 8, 13)(generator)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(3, *tensor.shape[1:], dtype=tensor.dtype).flatten()
        return whole[1 : 1 + tensor.numel()].copy_(tensor.flatten()).view(tensor.shape)

    return {name: moved(tensor) for name, tensor in arguments.items()}


def _transposed(generator: torch.Generator) -> dict[str, Any]:
    arguments = _noise(1, 19, 14)(generator)
    return {name: tensor.mT for name, tensor in arguments.items()}


def _not_finite(generator: torch.Generator) -> dict[str, Any]:
    arguments = _noise(1, 12, 20)(generator)
    for value in (torch.nan, torch.inf, -torch.inf, 1e30):
        for name in ("heatmap", "offset"):
            tensor = arguments[name]
            chosen = torch.rand(tensor.shape, generator=generator) < 0.05
            arguments[name] = tensor.masked_fill(chosen, value)
    return arguments


def _constant(value: float, **options: Any) -> Make:
    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _noise(2, 9, 14, **options)(generator)
        arguments["heatmap"].fill_(value)
        return arguments

    return make


def _signed_zeros(generator: torch.Generator) -> dict[str, Any]:
    """Zeros of both signs, which are equal: peaks are in reading order."""
    arguments = _noise(2, 9, 14)(generator)
    negative = arguments["heatmap"] < 0.5
    heat = torch.zeros_like(arguments["heatmap"]).masked_fill(negative, -0.0)
    return arguments | {"heatmap": heat, "threshold": -1.0, "window": 1}


CASES = (
    Case("one pixel", _noise(1, 1, 1)),
    Case("one row", _noise(1, 1, 37)),
    Case("one column", _noise(1, 41, 1)),
    Case("odd sizes", _noise(1, 23, 35)),
    Case("several images", _noise(3, 11, 18)),
    Case("no images", _noise(0, 11, 18)),
    Case("smaller than the window", _noise(1, 3, 5, window=31)),
    Case("window 1", _noise(1, 9, 14, window=1, limit=255)),
    Case("window 3", _noise(1, 23, 35, window=3)),
    Case("limit 1", _noise(2, 23, 35, limit=1)),
    Case("limit 255", _noise(1, 40, 67, window=3, limit=255)),
    Case("limit beyond the pixels", _noise(1, 4, 6, limit=255)),
    Case("few levels", _steps(4)),
    Case("many levels", _steps(9, window=3)),
    Case("two levels, every cell", _steps(2, window=1, limit=30, threshold=-1.0)),
    Case("one plateau", _constant(0.5)),
    Case("heat at the threshold", _constant(0.1)),
    Case("negative heat", _constant(-0.5)),
    Case("negative threshold", _constant(-0.5, threshold=-1.0)),
    Case("not finite", _not_finite),
    Case("zeros of either sign", _signed_zeros),
    Case("rising heat", _rising(32, 64)),
    Case("rising heat, limit 255", _rising(30, 67, limit=255)),
    Case("several parts", _noise(2, 50, 64, limit=255)),
    Case("blobs", _blobs(5, 45, 70)),
    Case("not at a multiple of 16 bytes", _odd_slices),
    Case("crops", _strided),
    Case("left parts", _left_parts),
    Case("transposed", _transposed),
    Case("480p, 20 centres", _blobs(25, 480, 854), bench=True),
)
