"""The calls of `match_proposals` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from typing import Any

import torch

from ..cases import Case, Make


def _matches(objects: int, proposals: int, **options: Any) -> Make:
    """Similarities of 0.3 to 0.6, and of 0.9 for the matching pairs."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        similarity = 0.3 + 0.3 * torch.rand(objects, proposals, generator=generator)
        count = min(objects, proposals)
        rows = torch.randperm(objects, generator=generator)[:count]
        columns = torch.randperm(proposals, generator=generator)[:count]
        similarity[rows, columns] = 0.9
        return {"similarity": similarity, **options}

    return make


def _noise(objects: int, proposals: int, **options: Any) -> Make:
    """Random similarities, some negative: several objects compete for one proposal."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        return {"similarity": torch.randn(objects, proposals, generator=generator), **options}

    return make


def _constant(value: float, objects: int, proposals: int, **options: Any) -> Make:
    return lambda _: {"similarity": torch.full((objects, proposals), value), **options}


def _twins(generator: torch.Generator) -> dict[str, Any]:
    """Two bitwise identical objects, and two pairs of bitwise identical proposals."""
    similarity = _matches(4, 11)(generator)["similarity"]
    similarity[2] = similarity[0]
    similarity[:, [3, 10]] = similarity[:, [0, 7]]
    return {"similarity": similarity}


def _transposed(generator: torch.Generator) -> dict[str, Any]:
    return {"similarity": _matches(12, 7)(generator)["similarity"].mT[1::2]}


CASES = (
    Case("one object, one proposal", _matches(1, 1)),
    Case("one object", _matches(1, 30)),
    Case("one proposal", _matches(5, 1)),
    Case("as many objects as proposals", _matches(6, 6)),
    Case("fewer proposals", _matches(9, 4)),
    Case("odd sizes", _matches(7, 19)),
    Case("more than a vector of any width", _matches(3, 65)),
    Case("more than 4 objects", _noise(6, 20, steps=8)),
    Case("more than 32 proposals", _noise(3, 45, steps=8)),
    Case("16 objects, 64 proposals", _noise(16, 64, steps=4)),
    Case("16 objects, 64 proposals, mean", _matches(16, 64, steps=4, answer="dmm")),
    Case("17 objects", _noise(17, 12, steps=3)),
    Case("many proposals, mean", _noise(2, 70, steps=4, answer="dmm")),
    Case("more objects than warps", _noise(35, 40, steps=1, inner=2)),
    Case("more proposals than threads", _noise(2, 1030, steps=1, inner=2)),
    Case("mean", _matches(3, 30, answer="dmm")),
    Case("mean, fewer proposals", _matches(9, 4, answer="dmm")),
    Case("noise", _noise(5, 17)),
    Case("noise, mean", _noise(5, 17, answer="dmm")),
    Case("noise, fewer proposals", _noise(11, 3)),
    Case("large similarities", lambda g: {"similarity": 100 * _noise(4, 9)(g)["similarity"]}),
    Case("no similarity", _constant(0.0, 3, 7)),
    Case("all alike", _constant(0.7, 3, 7)),
    Case("all opposite", _constant(-1.0, 4, 3, answer="dmm")),
    Case("twins", _twins),
    Case("one step, one round", _noise(4, 9, steps=1, inner=1, rate=1.0)),
    Case("many steps", _noise(3, 8, steps=90, inner=9)),
    Case("no objects", _matches(0, 30)),
    Case("no proposals", _matches(3, 0)),
    Case("transposed", _transposed),
    Case("3 objects, 30 proposals", _matches(3, 30), bench=True),
    Case("10 objects, 30 proposals", _matches(10, 30), bench=True),
    Case("1 object, 30 proposals", _matches(1, 30), bench=True),
)
