"""The calls of `correlate_frames` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make


def _frames(batch: int, channels: int, height: int, width: int, **options: Any) -> Make:
    """A frame and the same frame shifted by (1, 2) cells with noise."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        query = torch.randn(batch, channels, height, width, generator=generator)
        noise = torch.randn(batch, channels, height, width, generator=generator)
        previous = torch.roll(query, (1, 2), dims=(2, 3)) + 0.3 * noise
        return {"query": query, "previous": previous, **options}

    return make


def _channels_last(generator: torch.Generator) -> dict[str, Any]:
    arguments = _frames(1, 16, 6, 9)(generator)
    for name in ("query", "previous"):
        arguments[name] = arguments[name].contiguous(memory_format=torch.channels_last)
    return arguments


def _nothing_alike(generator: torch.Generator) -> dict[str, Any]:
    """The second frame is the negated first: candidates beyond the frame have the maximum."""
    arguments = _frames(1, 8, 3, 6, radius=2)(generator)
    arguments["query"] = 0.2 * arguments["query"] + 1
    arguments["previous"] = -arguments["query"].flip(3)
    return arguments


def _strided_views(generator: torch.Generator) -> dict[str, Any]:
    """Irregular strides, different for the two frames, and 20 of 23 channels."""
    arguments = _frames(2, 23, 11, 10, radius=4)(generator)
    query, previous = arguments["query"], arguments["previous"]
    arguments["query"] = query.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)[:, 1:-2, ::2]
    arguments["previous"] = previous.mT.contiguous().mT[:, 1:-2, ::2]
    return arguments


def _tensor_temperature(generator: torch.Generator) -> dict[str, Any]:
    return {**_frames(1, 8, 4, 6, radius=2)(generator), "temperature": torch.tensor(7.5)}


def _zero_vectors(generator: torch.Generator) -> dict[str, Any]:
    arguments = _frames(1, 8, 5, 5)(generator)
    arguments["query"][:, :, 2] = 0
    arguments["previous"][:, :, :, 1] = 0
    return arguments


CASES = (
    Case("one cell", _frames(1, 4, 1, 1, radius=2)),
    Case("smaller than the window", _frames(1, 16, 5, 7)),
    Case("odd sizes", _frames(2, 33, 9, 13, radius=3)),
    Case("wider than one tile", _frames(1, 8, 3, 70)),
    Case("radius 0", _frames(1, 8, 4, 6, radius=0)),
    Case("window wider than a key block", _frames(1, 8, 5, 43, radius=20)),
    Case("many channels", _frames(1, 300, 3, 5, radius=2)),
    Case("literal soft-argmin", _frames(1, 16, 8, 11, temperature=-1.0)),
    Case("flat softmax", _frames(1, 16, 8, 11, temperature=0.0)),
    Case("sharp softmax", _frames(1, 16, 8, 11, temperature=200.0)),
    Case("outside excluded", _frames(2, 16, 7, 10, outside="exclude")),
    Case(
        "outside excluded, soft-argmin", _frames(1, 16, 7, 10, outside="exclude", temperature=-1.0)
    ),
    Case("no images", _frames(0, 16, 7, 10)),
    Case("channels last", _channels_last),
    Case("nothing alike", _nothing_alike),
    Case("strided views", _strided_views),
    Case("zero vectors", _zero_vectors),
    Case("temperature in a tensor", _tensor_temperature),
    Case("480p", _frames(1, 256, 30, 54), bench=True),
)
