"""The calls of `prepare_frame` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as STM uses them
NO_PADDING = (0, 0, 0, 0)


def _draw(generator: torch.Generator, shape: tuple[int, ...], float_frame: bool) -> torch.Tensor:
    if float_frame:
        return torch.rand(shape, generator=generator)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _frame(
    height: int,
    width: int,
    size: tuple[int, int] | None = None,
    padding: tuple[int, int, int, int] = NO_PADDING,
    float_frame: bool = False,
    **options: Any,
) -> Make:
    """A frame of noise, the hardest image to resize; `size` None leaves it as large as it is."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        return {
            "frame": _draw(generator, (height, width, 3), float_frame),
            "size": size or (height, width),
            "padding": padding,
            "mean": MEAN,
            "std": STD,
            "dtype": torch.float32,
            **options,
        }

    return make


def _planar(size: tuple[int, int], float_frame: bool = False) -> Make:
    """Colours stored apart, as a decoder's [3, H, W] seen through permute."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _frame(9, 13, size, (1, 2, 3, 4))(generator)
        arguments["frame"] = _draw(generator, (3, 9, 13), float_frame).permute(1, 2, 0)
        return arguments

    return make


def _crop(size: tuple[int, int]) -> Make:
    """Rows that lie apart, in the middle of a larger frame, and only every second of them."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _frame(11, 15, size, (0, 1, 0, 1))(generator)
        arguments["frame"] = _draw(generator, (40, 30, 3), False)[5:27:2, 7:22]
        return arguments

    return make


def _four_channels(generator: torch.Generator) -> dict[str, Any]:
    arguments = _frame(7, 10, (14, 5))(generator)
    arguments["frame"] = _draw(generator, (7, 10, 4), False)[..., :3]
    return arguments


def _black_and_white(generator: torch.Generator) -> dict[str, Any]:
    arguments = _frame(16, 24, (9, 37), (1, 1, 1, 1))(generator)
    arguments["frame"] = torch.where(arguments["frame"] > 127, 255, 0).to(torch.uint8)
    return arguments


CASES = (
    Case("one pixel", _frame(1, 1)),
    Case("one pixel enlarged", _frame(1, 1, (5, 7), (1, 0, 0, 2))),
    Case("shrunk to one pixel", _frame(37, 23, (1, 1))),
    Case("same size, odd", _frame(5, 123)),
    Case("same size, float", _frame(7, 33, float_frame=True)),
    Case("same size, padded on one side each", _frame(6, 9, None, (3, 0, 0, 5))),
    Case("enlarged", _frame(13, 17, (31, 41), (2, 3, 1, 0))),
    Case("enlarged, float", _frame(13, 17, (29, 35), float_frame=True)),
    Case("shrunk", _frame(61, 47, (23, 19), (0, 5, 2, 0))),
    Case("shrunk, float", _frame(61, 47, (23, 19), float_frame=True)),
    Case("shrunk a little", _frame(40, 40, (39, 38))),
    Case("shrunk much", _frame(200, 150, (3, 4))),
    Case("narrower and taller", _frame(20, 50, (45, 21), (1, 1, 0, 0))),
    Case("height alone", _frame(20, 50, (9, 50))),
    Case("width alone", _frame(20, 50, (20, 77))),
    Case("planar", _planar((9, 13))),
    Case("planar, resized", _planar((5, 20))),
    Case("planar float, resized", _planar((20, 5), float_frame=True)),
    Case("crop of a larger frame", _crop((11, 15))),
    Case("crop of a larger frame, resized", _crop((7, 22))),
    Case("three of four channels", _four_channels),
    Case("black and white", _black_and_white),
    Case("other normalisation", _frame(8, 8, (5, 5), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))),
    Case("480p padded", _frame(480, 854, None, (5, 5, 0, 0)), bench=True),
    Case("1080p to 480p", _frame(1080, 1920, (480, 854), (5, 5, 0, 0)), bench=True),
    Case("480p padded, float", _frame(480, 854, None, (5, 5, 0, 0), float_frame=True), bench=True),
)
