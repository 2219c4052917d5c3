"""The calls of `deform_conv` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make
from .reference import Pair, output_size


def _call(
    *shape: int,
    outputs: int = 8,
    kernel: tuple[int, int] = (3, 3),
    offset_groups: int = 1,
    groups: int = 1,
    spread: float = 2.0,
    bias: bool = False,
    mask: bool = False,
    **options: Pair,
) -> Make:
    """Normal x [B, C, H, W] and weights; offsets normal with standard deviation `spread`."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        per_group = shape[1] // groups
        depth = per_group * kernel[0] * kernel[1]
        x, weight = normal(*shape), normal(outputs, per_group, *kernel) / depth**0.5
        steps = [options.get(name, least) for name, least in _LEAST.items()]
        size = output_size(x, weight, *steps)
        taps = offset_groups * kernel[0] * kernel[1]
        offset = spread * normal(shape[0], 2 * taps, *size)
        made: dict[str, Any] = {"x": x, "offset": offset, "weight": weight, **options}
        if groups > 1:
            made["groups"] = groups
        if bias:
            made["bias"] = normal(outputs)
        if mask:
            made["mask"] = torch.sigmoid(normal(shape[0], taps, *size))
        return made

    return make


_LEAST = {"stride": 1, "padding": 0, "dilation": 1}


def _strided(generator: torch.Generator) -> dict[str, Any]:
    """Views: channels last, every second row, a slice of a wider tensor."""
    made = _call(2, 6, 14, 18, outputs=10, offset_groups=2, mask=True, bias=True, padding=1)(
        generator
    )
    made["x"] = made["x"].contiguous(memory_format=torch.channels_last)[:, :, ::2, 1:-1]
    for name in ("offset", "mask"):
        made[name] = made[name][:, :, ::2, 1:-1].transpose(2, 3).contiguous().transpose(2, 3)
    made["weight"] = made["weight"].flip(0).repeat(2, 1, 1, 1)[::2].transpose(2, 3)
    made["bias"] = made["bias"].repeat_interleave(2)[::2]
    return made


def _far_out(generator: torch.Generator) -> dict[str, Any]:
    """Offsets near the maximum of float16, and whole-pixel offsets on and around the border."""
    made = _call(1, 8, 6, 9, offset_groups=2, mask=True, padding=1)(generator)
    flat = made["offset"].flatten()
    flat[::7], flat[1::7], flat[2::7] = 6e4, -6e4, flat[2::7].round()
    made["offset"] = flat.view_as(made["offset"])
    return made


CASES = (
    Case("one pixel", _call(1, 1, 1, 1, outputs=1, kernel=(1, 1))),
    Case("one pixel, 3 x 3", _call(1, 4, 1, 1, padding=1, spread=0.5)),
    Case("one row", _call(1, 8, 1, 17, offset_groups=8, padding=1, spread=0.7)),
    Case("one column", _call(1, 8, 17, 1, offset_groups=1, padding=1, spread=0.7)),
    Case("v1", _call(1, 16, 9, 13, outputs=16, offset_groups=2, padding=1)),
    Case("v2", _call(2, 16, 9, 13, outputs=16, offset_groups=2, padding=1, mask=True, bias=True)),
    Case("eight channels per offset group", _call(1, 64, 10, 12, outputs=64, offset_groups=8)),
    Case("12 channels per offset group", _call(1, 24, 7, 9, outputs=5, offset_groups=2, mask=True)),
    Case("odd sizes", _call(2, 5, 7, 11, outputs=7, padding=1, bias=True)),
    Case("offsets per channel", _call(1, 3, 8, 9, outputs=3, offset_groups=3, padding=1)),
    Case("strides", _call(1, 8, 15, 16, offset_groups=2, stride=(2, 3), padding=(0, 2))),
    Case("dilations", _call(1, 8, 15, 16, offset_groups=1, padding=2, dilation=(2, 3), mask=True)),
    Case("1 x 1 kernel", _call(2, 12, 6, 7, kernel=(1, 1), offset_groups=4, stride=2)),
    Case("5 x 5 kernel", _call(1, 6, 7, 9, outputs=3, kernel=(5, 5), offset_groups=2, padding=2)),
    Case("3 x 1 kernel", _call(1, 8, 9, 8, kernel=(3, 1), offset_groups=2, padding=(1, 0))),
    Case("even kernel", _call(1, 4, 6, 7, kernel=(2, 4), padding=1, mask=True)),
    Case("groups", _call(1, 12, 7, 8, outputs=6, groups=2, offset_groups=3, padding=1, bias=True)),
    Case("groups within an offset group", _call(1, 16, 6, 7, groups=4, offset_groups=2)),
    Case(
        "groups of more outputs than a tile",
        _call(1, 16, 4, 5, outputs=140, kernel=(2, 1), offset_groups=4, groups=2, bias=True),
    ),
    Case(
        "depthwise", _call(1, 4, 7, 8, outputs=4, groups=4, offset_groups=2, padding=1, mask=True)
    ),
    Case("deep", _call(1, 160, 5, 6, outputs=40, padding=1, offset_groups=2)),
    Case("far out", _far_out),
    Case("no offset at all", _call(1, 8, 6, 9, padding=1, spread=0.0)),
    Case("no images", _call(0, 8, 6, 9, padding=1, bias=True)),
    Case("strided views", _strided),
    Case(
        "IMCNet, 480 square",
        _call(1, 64, 120, 120, outputs=64, offset_groups=8, padding=1, bias=True),
        bench=True,
    ),
)
