"""The calls of `finish_masks` that every backend is tested, self-tested and timed on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from ..cases import Case, Make
from .reference import finish_masks

UNDECIDED = 1e-5  # the error of q that the contract allows


def undecided(
    arguments: dict[str, Any], output64: tuple[torch.Tensor, torch.Tensor | None]
) -> torch.Tensor:
    """Return the mask of pixels whose label rounding may decide: the two greatest q are equal
    within the error that the contract allows.

    arguments  of the call, in any dtype
    output64   outputs of the reference in float64; q is computed here if it is None
    returns    [H, W] bool, with `first` [B, H, W]
    """
    q = output64[1]
    if q is None:
        exact = {**arguments, "logits": arguments["logits"].double(), "probabilities": True}
        _, q = finish_masks(**exact)
    assert q is not None
    if arguments.get("first") is None:
        return _nearly_equal(q)
    ends = (arguments["first"] + torch.arange(len(arguments["first"]), device=q.device)).tolist()
    return torch.stack([_nearly_equal(q[a:b]) for a, b in pairwise(ends)])


def _nearly_equal(q: torch.Tensor) -> torch.Tensor:
    if len(q) == 1:
        return torch.zeros(q.shape[1:], dtype=torch.bool, device=q.device)
    greatest = q.topk(2, dim=0).values
    return greatest[0] - greatest[1] < UNDECIDED


def _whole(height: int, width: int) -> tuple[float, float, float, float]:
    return (0.0, 0.0, float(height), float(width))


def _masks(
    objects: int,
    height: int,
    width: int,
    size: tuple[int, int],
    region: tuple[float, float, float, float] | None = None,
    scale: float = 4.0,
    **options: Any,
) -> Make:
    """Random logits, ids unsorted and with gaps; `region` None is the whole grid."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        ids = torch.randperm(255, generator=generator)[:objects] + 1
        return {
            "logits": scale * torch.randn(objects, height, width, generator=generator),
            "ids": ids.to(torch.uint8),
            "size": size,
            "region": region or _whole(height, width),
            "probabilities": True,
            **options,
        }

    return make


def _strided(generator: torch.Generator) -> dict[str, Any]:
    arguments = _masks(3, 6, 9, (24, 36))(generator)
    planes = torch.randn(6, 18, 10, generator=generator).permute(2, 0, 1)
    arguments["logits"] = planes[1:7:2, :, ::2]
    arguments["ids"] = arguments["ids"].repeat_interleave(2)[::2]
    return arguments


def _expanded(generator: torch.Generator) -> dict[str, Any]:
    """One mask expanded to four objects: a tie wherever an object wins."""
    arguments = _masks(4, 6, 9, (24, 36))(generator)
    arguments["logits"] = arguments["logits"][:1].expand(4, -1, -1)
    return arguments


def _extreme(generator: torch.Generator) -> dict[str, Any]:
    """Steps between -100 and 100, where e^logit overflows, is clamped or underflows."""
    arguments = _masks(4, 7, 11, (28, 44))(generator)
    arguments["logits"] = 100 * arguments["logits"].sign()
    return arguments


def _constant(objects: int, value: float) -> Make:
    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _masks(objects, 5, 7, (20, 28))(generator)
        arguments["logits"].fill_(value)
        return arguments

    return make


def _shifted(generator: torch.Generator) -> dict[str, Any]:
    """Logits that start in the middle of a larger tensor."""
    arguments = _masks(2, 6, 9, (24, 37))(generator)
    larger = 4 * torch.randn(3, 9, 14, generator=generator)
    arguments["logits"] = larger[1:, 1:7, 3:12]
    return arguments


def _ladder(objects: int, low: float, high: float, probabilities: bool) -> Make:
    """Maximum logits between `low` and `high`, all objects within 0.1 of them: the background is
    about as likely as the objects."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        arguments = _masks(objects, 4, 30, (16, 120), probabilities=probabilities)(generator)
        noise = 0.1 * torch.rand(objects, 4, 30, generator=generator)
        arguments["logits"] = torch.linspace(low, high, 30) - noise
        return arguments

    return make


def _half_absent(generator: torch.Generator) -> dict[str, Any]:
    """The same with the first half of the objects absent and the last certain at the upper edge:
    pixels decided by the maximum alone lie beside pixels that are not."""
    arguments = _ladder(100, -5.0, 0.2, False)(generator)
    arguments["logits"][:50] -= 20
    arguments["logits"][99, 0] = 5
    return arguments


def _mostly_absent(generator: torch.Generator) -> dict[str, Any]:
    """Many objects at the lower clamp, whose odds add up."""
    arguments = _masks(255, 3, 5, (9, 20), scale=1.0)(generator)
    arguments["logits"][:250] = -100
    return arguments


def _at_480p(objects: int, probabilities: bool) -> Make:
    region = (0.0, 1.25, 120.0, 213.5)  # 854 pixels with 5 of padding on both sides
    return _masks(objects, 120, 216, (480, 854), region, probabilities=probabilities)


def _streams(first: tuple[int, ...], unused: int = 0, **options: Any) -> Make:
    """Several streams whose objects have the same ids, and NaN rows that belong to no stream."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        size = options.get("size", (19, 27))
        made = _masks(first[-1] + unused, 5, 7, **{"size": size, **options})(generator)
        made["logits"][first[-1] :] = torch.nan
        made["ids"] = (torch.arange(len(made["ids"])) % 3 + 1).to(torch.uint8)
        return made | {"first": torch.tensor(first, dtype=torch.int32)}

    return make


def _streams_at_480p(streams: int, objects: int) -> Make:
    def make(generator: torch.Generator) -> dict[str, Any]:
        made = _at_480p(streams * objects, probabilities=False)(generator)
        return made | {"first": torch.arange(streams + 1).int() * objects}

    return make


CASES = (
    Case("one cell", _masks(1, 1, 1, (1, 1))),
    Case("one cell enlarged", _masks(2, 1, 1, (5, 3))),
    Case("one object", _masks(1, 5, 7, (20, 28))),
    Case("no object", _masks(0, 5, 7, (20, 28))),
    Case("no object, labels alone", _masks(0, 5, 7, (20, 28), probabilities=False)),
    Case("many objects", _masks(12, 6, 9, (24, 36))),
    Case("many objects, labels alone", _masks(12, 6, 9, (24, 36), probabilities=False)),
    Case("odd sizes", _masks(3, 5, 31, (19, 123))),
    Case("not four times", _masks(3, 9, 13, (31, 40), (0.5, 0.25, 8.0, 12.5))),
    Case("padding cropped", _masks(3, 8, 12, (30, 41), (0.25, 0.75, 7.5, 10.25))),
    Case("region beyond the grid", _masks(2, 6, 6, (40, 40), (-2.0, -1.5, 10.0, 9.5))),
    Case("smaller than the grid", _masks(3, 20, 30, (7, 11))),
    Case("same size", _masks(3, 9, 17, (9, 17))),
    Case("small logits", _masks(5, 6, 9, (24, 36), scale=0.01)),
    Case("large logits", _masks(5, 6, 9, (24, 36), scale=20.0)),
    Case("steps of 200", _extreme),
    Case("all at 100", _constant(12, 100.0)),
    Case("all at -100", _constant(12, -100.0)),
    Case("all at -15", _constant(3, -15.0)),
    Case("one undecided", _constant(1, 0.0)),
    Case("equal objects", _expanded),
    Case("strided", _strided),
    Case("begins inside a tensor", _shifted),
    Case("wider than a tile", _masks(2, 4, 70, (15, 275), (0.5, 0.5, 3.0, 69.0))),
    Case("wider than a tile, whole words", _masks(2, 4, 70, (16, 276))),
    Case("wider than a tile, labels alone", _masks(2, 4, 35, (15, 139), probabilities=False)),
    Case("70 objects", _masks(70, 6, 34, (18, 130))),
    Case("70 objects, labels alone", _masks(70, 6, 34, (17, 131), probabilities=False)),
    Case("255 objects", _masks(255, 3, 5, (9, 20), scale=2.0)),
    Case("255 objects, labels alone", _masks(255, 3, 5, (9, 20), scale=2.0, probabilities=False)),
    Case("255 objects, 250 of them absent", _mostly_absent),
    Case("just 3 times", _masks(3, 7, 11, (21, 33))),
    Case("just above 3 times", _masks(3, 7, 20, (22, 61))),
    Case("wider, lower", _masks(3, 40, 9, (13, 36))),
    Case("narrower, higher", _masks(3, 5, 60, (20, 22))),
    Case("smaller, labels alone", _masks(3, 20, 30, (7, 11), probabilities=False)),
    Case("a corner beyond the grid", _masks(2, 6, 6, (25, 47), (-3.5, 3.75, 5.25, 7.5))),
    Case("nearly even, 1 object", _ladder(1, -0.5, 0.5, False)),
    Case("nearly even, 10 objects", _ladder(10, -3.0, 0.2, False)),
    Case("nearly even, 60 objects", _ladder(60, -5.0, 0.2, False)),
    Case("nearly even, 60 objects, probabilities", _ladder(60, -5.0, 0.2, True)),
    Case("nearly even, half of 100 objects", _half_absent),
    Case("streams", _streams((0, 3, 4, 9))),
    Case("streams, labels alone", _streams((0, 3, 4, 9), probabilities=False)),
    Case("streams, some without objects", _streams((0, 0, 2, 2, 3, 3))),
    Case("streams, none of any object", _streams((0, 0, 0))),
    Case("streams, one alone", _streams((0, 4))),
    Case("streams, rows of none", _streams((0, 2, 2, 5), unused=4, size=(20, 28))),
    Case("streams, smaller than the grid", _streams((0, 2, 3), size=(3, 4))),
    Case("480p, 3 objects", _at_480p(3, probabilities=False), bench=True),
    Case("480p, 3 objects, probabilities", _at_480p(3, probabilities=True), bench=True),
    Case("480p, 1 object", _at_480p(1, probabilities=False), bench=True),
    Case("480p, 1 object, probabilities", _at_480p(1, probabilities=True), bench=True),
    Case("480p, 10 objects", _at_480p(10, probabilities=False), bench=True),
    Case("480p, 10 objects, probabilities", _at_480p(10, probabilities=True), bench=True),
    Case("480p, four streams of 3 objects", _streams_at_480p(4, 3), bench=True),
)
