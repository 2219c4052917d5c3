"""The calls of `pool_regions` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..cases import Case, Make

Level = tuple[int, int]  # channels and stride

LEVELS = ((5, 4), (3, 8), (9, 16))
DMN_AOA = ((128, 4), (128, 8), (256, 16))


def draw_boxes(
    generator: torch.Generator, count: int, height: int, width: int, sides: tuple[float, float]
) -> torch.Tensor:
    """Draw boxes [count, 4]: sides between two lengths in pixels, short ones more often, centres
    inside the frame."""
    least, most = sides
    lengths = least * (most / least) ** torch.rand(count, 2, generator=generator)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    return torch.cat((centres - lengths / 2, centres + lengths / 2), dim=1)


def _regions(
    count: int,
    height: int,
    width: int,
    *,
    levels: tuple[Level, ...] = LEVELS,
    batch: int = 1,
    sides: tuple[float, float] = (4, 60),
    planes: int = 0,
    **options: Any,
) -> Make:
    """Boxes on maps of noise; with planes > 0 a plane per box, of that many pixels per cell."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "levels": tuple(
                torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator)
                for c, s in levels
            ),
            "boxes": draw_boxes(generator, count, height, width, sides),
            "strides": tuple(s for _, s in levels),
        }
        if batch > 1:
            frame = torch.randint(batch, (count,), generator=generator)
            arguments["frame"] = frame.to(torch.int32)
        if planes:
            shape = (count, -(-height // planes), -(-width // planes))
            arguments["planes"] = torch.rand(shape, generator=generator)
            arguments["plane_stride"] = planes
        return arguments | options

    return make


def _proposals(count: int, *, planes: bool = False) -> Make:
    """DMN-AOA at 480p: boxes as large as the objects of DAVIS, smooth maps and masks.

    With smooth maps a baseline with float32 positions in -1..1, such as torch's grid_sample, passes
    the parity rule and can be timed.
    """

    def make(generator: torch.Generator) -> dict[str, Any]:
        def smooth(number: int, channels: int, height: int, width: int) -> torch.Tensor:
            noise = torch.randn(number, channels, 5, 9, generator=generator)
            return functional.interpolate(noise, (height, width), mode="bicubic")

        arguments: dict[str, Any] = {
            "levels": tuple(smooth(1, c, 480 // s, 864 // s) for c, s in DMN_AOA),
            "boxes": draw_boxes(generator, count, 480, 864, (20, 400)),
            "strides": tuple(s for _, s in DMN_AOA),
        }
        if planes:
            arguments["planes"] = smooth(count, 1, 480, 864)[:, 0].sigmoid()
        return arguments

    return make


def _boxes(*boxes: tuple[float, float, float, float], **options: Any) -> Make:
    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _regions(len(boxes), 60, 90, planes=2, **options)(generator)
        return arguments | {"boxes": torch.tensor(boxes)}

    return make


def _channels_last(make: Make) -> Make:
    def make_channels_last(generator: torch.Generator) -> dict[str, Any]:
        arguments = make(generator)
        levels = (x.contiguous(memory_format=torch.channels_last) for x in arguments["levels"])
        return arguments | {"levels": tuple(levels)}

    return make_channels_last


def _either_layout(generator: torch.Generator) -> dict[str, Any]:
    """Many small regions, for which a block takes many channels; the last block has few."""
    sizes = ((64, 8), (40, 4))
    arguments = _regions(130, 30, 40, levels=sizes, size=2, sampling=1)(generator)
    first, second = arguments["levels"]
    first = first.contiguous(memory_format=torch.channels_last)
    return arguments | {"levels": (first, second)}


def _some_channels(generator: torch.Generator) -> dict[str, Any]:
    """Channels last, cells not aligned to 16 bytes or channels not a multiple of that."""
    arguments = _channels_last(_regions(3, 40, 56, levels=((24, 4), (24, 8))))(generator)
    first, second = arguments["levels"]
    return arguments | {"levels": (first[:, 1:17], second[:, :13])}


def _strided(generator: torch.Generator) -> dict[str, Any]:
    """Channels last, a crop, a batch slice with every second channel; planes of one mask."""
    noise = [torch.randn(3, 8, 20, 30, generator=generator) for _ in range(3)]
    return {
        "levels": (
            noise[0][1:].contiguous(memory_format=torch.channels_last),
            noise[1][:2, :, 3:17, 4:29],
            noise[2][::2, ::2],
        ),
        "boxes": draw_boxes(generator, 4, 80, 120, (4, 60)),
        "strides": (4, 5, 4),
        "frame": torch.tensor([1, 0, 0, 1], dtype=torch.int32),
        "planes": torch.rand(20, 31, generator=generator).mT.expand(4, -1, -1),
        "plane_stride": 4,
    }


def _frames_outside(generator: torch.Generator) -> dict[str, Any]:
    arguments = _regions(5, 40, 56, batch=2)(generator)
    return arguments | {"frame": torch.tensor([-7, -1, 1, 2, 1 << 30], dtype=torch.int32)}


UNUSUAL = (
    (20.0, 20.0, 20.0, 20.0),  # no area
    (10.0, 12.0, 30.0, 12.0),
    (40.0, 30.0, 10.0, 5.0),  # reversed
    (-30.0, -20.0, 25.0, 15.0),  # partly outside
    (80.0, 50.0, 200.0, 300.0),
    (-90.0, -80.0, -20.0, -10.0),  # outside
    (500.0, 10.0, 600.0, 20.0),
    (-300.0, -300.0, 400.0, 400.0),  # around the frame
    (-3e4, -3e4, 6e4, 6e4),
    (0.0, 0.0, 90.0, 60.0),  # the frame
    (3.0, 4.0, 3.25, 4.25),
)
NOT_FINITE = (
    (float("nan"), 0.0, 20.0, 20.0),
    (0.0, 0.0, float("inf"), 20.0),
    (5.0, 8.0, 20.0, float("-inf")),
    (5.0, 8.0, 20.0, 30.0),
    (float("-inf"), float("-inf"), float("inf"), float("inf")),
)

CASES = (
    Case("one cell", _regions(1, 1, 1, levels=((2, 1),), sides=(0.5, 2), size=2)),
    Case("one bin", _regions(3, 40, 56, planes=1, size=1)),
    Case("three levels", _regions(4, 60, 90)),
    Case("with planes", _regions(3, 60, 90, planes=1)),
    Case("coarse planes", _regions(3, 60, 90, planes=4)),
    Case("several images", _regions(6, 40, 56, batch=3, planes=2)),
    Case("frames outside of the batch", _frames_outside),
    Case("size 7, sampling 1", _regions(3, 60, 90, planes=1, size=7, sampling=1)),
    Case("size 5, sampling 3", _regions(3, 60, 90, size=5, sampling=3)),
    Case("size 9, sampling 8", _regions(2, 60, 90, levels=((2, 4),), size=9, sampling=8)),
    Case("size 37, sampling 1", _regions(2, 60, 90, size=37, sampling=1)),
    Case("not aligned", _regions(4, 60, 90, planes=2, aligned=False)),
    Case("narrow map", _regions(3, 400, 12, levels=((3, 4), (2, 1)), sides=(4, 300))),
    Case("wide map", _regions(3, 12, 700, levels=((3, 4), (2, 1)), sides=(4, 600))),
    Case("many channels", _regions(2, 30, 40, levels=((150, 8), (67, 4)))),
    Case("channels last", _channels_last(_regions(3, 60, 90, levels=((40, 4), (8, 8), (16, 16))))),
    Case("channels last, size 37", _channels_last(_regions(1, 60, 90, levels=((8, 4),), size=37))),
    Case("some channels of those last", _some_channels),
    Case("many regions", _either_layout),
    Case("unusual boxes", _boxes(*UNUSUAL)),
    Case("unusual boxes, not aligned", _boxes(*UNUSUAL, aligned=False)),
    Case("not finite boxes", _boxes(*NOT_FINITE)),
    Case("not finite boxes, not aligned", _boxes(*NOT_FINITE, aligned=False)),
    Case("strided", _strided),
    Case("no regions", _regions(0, 60, 90, planes=2)),
    Case("480p, 30 proposals", _proposals(30), bench=True),
    Case("480p, 3 objects with planes", _proposals(3, planes=True), bench=True),
    Case("480p, 10 objects with planes", _proposals(10, planes=True), bench=True),
)
