"""The calls of `prepare_frame` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in STM
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
    """A frame of noise, the hardest image to resize; `size` None keeps its size."""

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


def _half(
    size: tuple[int, int], padding: tuple[int, int, int, int] = NO_PADDING, **options: Any
) -> Make:
    """A half-precision result whose rows are a multiple of 16 bytes, as a network's are."""
    assert (padding[0] + size[1] + padding[1]) % 8 == 0
    return _frame(21, 42, size, padding, dtype=torch.float16, **options)


def _shifted(columns: int, size: tuple[int, int], padding: tuple[int, int, int, int]) -> Make:
    """A frame that starts `columns` pixels into rows of 50: every row has another alignment."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _frame(12, 42, size, padding)(generator)
        arguments["frame"] = _draw(generator, (12, 50, 3), False)[:, columns : columns + 42]
        return arguments

    return make


def _thinned(size: tuple[int, int]) -> Make:
    """Every second pixel of a row."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _frame(9, 14, size, (1, 1, 0, 0))(generator)
        arguments["frame"] = _draw(generator, (9, 28, 3), False)[:, ::2]
        return arguments

    return make


def _planar(size: tuple[int, int], float_frame: bool = False) -> Make:
    """Planar colours: a decoder's [3, H, W], permuted."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _frame(9, 13, size, (1, 2, 3, 4))(generator)
        arguments["frame"] = _draw(generator, (3, 9, 13), float_frame).permute(1, 2, 0)
        return arguments

    return make


def _crop(size: tuple[int, int]) -> Make:
    """Every second row of a crop from the middle of a larger frame."""

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
    Case("one pixel wide", _frame(5, 1, (4, 1), (0, 1, 0, 0))),
    Case("one pixel high", _frame(1, 9, (1, 5))),
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
    Case("half", _half((21, 42), (3, 3, 1, 2))),
    Case("half, resized", _half((13, 30), (1, 1, 0, 2))),
    Case("half, channels last", _half((21, 42), (6, 0, 0, 1), channels_last=True)),
    Case("half, channels last, resized", _half((30, 63), (0, 1, 0, 0), channels_last=True)),
    Case("channels last, odd", _frame(7, 11, None, (1, 1, 2, 0), channels_last=True)),
    Case("channels last, float", _frame(7, 9, (9, 14), float_frame=True, channels_last=True)),
    Case("wider than a tile", _frame(6, 531, None, (5, 8, 1, 0))),
    Case("wider than a tile, float", _frame(3, 150, None, (1, 1, 0, 0), float_frame=True)),
    Case("padding wider than a tile", _frame(5, 7, None, (600, 3, 9, 17))),
    Case("padding wider than a tile, resized", _frame(5, 7, (4, 9), (70, 75, 19, 33))),
    Case("shrunk along one side", _frame(50, 21, (20, 21))),
    Case("shrunk along the other side", _frame(21, 90, (21, 37), (2, 0, 0, 1))),
    Case("shrunk 3 times", _frame(66, 213, (22, 71), (0, 1, 0, 0))),
    Case("shrunk 5 times", _frame(105, 330, (21, 66))),
    Case("shrunk 9 times, padded", _frame(90, 108, (10, 12), (1, 3, 2, 0))),
    Case("shrunk 9 times, float", _frame(45, 63, (5, 7), float_frame=True)),
    Case("shrunk along, enlarged across", _frame(8, 90, (20, 9))),
    Case("shifted by 1", _shifted(1, (12, 42), (3, 3, 0, 0))),
    Case("shifted by 6", _shifted(6, (12, 42), NO_PADDING)),
    Case("shifted by 3, resized", _shifted(3, (9, 31), (0, 1, 0, 0))),
    Case("every second pixel", _thinned((9, 14))),
    Case("every second pixel, resized", _thinned((6, 17))),
    Case("480p padded", _frame(480, 854, None, (5, 5, 0, 0)), bench=True),
    Case("1080p to 480p", _frame(1080, 1920, (480, 854), (5, 5, 0, 0)), bench=True),
    Case("480p padded, float", _frame(480, 854, None, (5, 5, 0, 0), float_frame=True), bench=True),
)
