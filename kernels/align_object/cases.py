"""The calls of `align_object` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make


def _maps(
    objects: int, proposals: int, positions: int, others: int, channels: int, **options: Any
) -> Make:
    """Random templates and proposals; every second proposal is a shuffled template with noise."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        template = torch.randn(objects, positions, channels, generator=generator)
        proposal = torch.randn(proposals, others, channels, generator=generator)
        for j in range(0, proposals if objects else 0, 2):
            order = torch.randperm(positions, generator=generator)[:others]
            shuffled = template[j // 2 % objects, order]
            proposal[j, : len(order)] = shuffled + 0.3 * proposal[j, : len(order)]
        return {"template": template, "proposal": proposal, **options}

    return make


def _zero_vectors(generator: torch.Generator) -> dict[str, Any]:
    arguments = _maps(2, 3, 12, 10, 8, translate=True)(generator)
    arguments["template"][0, :5] = 0
    arguments["proposal"][0, 3] = 0
    arguments["proposal"][1] = 0
    return arguments


def _channels_first(generator: torch.Generator) -> dict[str, Any]:
    arguments = _maps(2, 3, 12, 20, 8, translate=True)(generator)
    return {
        name: value.mT.contiguous().mT if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


CASES = (
    Case("one position", _maps(1, 1, 1, 1, 4, translate=True)),
    Case("one object", _maps(1, 5, 16, 16, 8)),
    Case("odd sizes", _maps(3, 5, 13, 19, 33, translate=True)),
    Case("flat", _maps(3, 5, 13, 19, 33, score="flat")),
    Case("tails of every tile", _maps(2, 2, 35, 37, 20, alpha=10.0, translate=True)),
    Case("wide", _maps(2, 2, 3, 18, 260, score="flat", translate=True)),
    Case("many positions", _maps(1, 2, 259, 5, 4)),
    Case("one channel", _maps(2, 3, 7, 7, 1)),
    Case("all positions alike", _maps(2, 3, 9, 9, 8, alpha=0.0, translate=True)),
    Case("nearest position", _maps(2, 3, 9, 9, 8, alpha=1e4, translate=True)),
    Case("zero vectors", _zero_vectors),
    Case("channels first", _channels_first),
    Case("no objects", _maps(0, 3, 9, 9, 8, translate=True)),
    Case("no proposals", _maps(2, 0, 9, 9, 8, translate=True)),
    Case("14 x 14, 3 objects, 30 proposals", _maps(3, 30, 196, 196, 256), bench=True),
    Case("14 x 14, 5 objects, 30 proposals", _maps(5, 30, 196, 196, 256), bench=True),
)
