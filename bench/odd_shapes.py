"""Random shapes for every op, mostly odd: not multiples of tiles, some tiny."""

from __future__ import annotations

import random
from collections.abc import Callable

from vosengine.kernels.align_object import cases as align_object
from vosengine.kernels.cases import Case, Make
from vosengine.kernels.correlate_frames import cases as correlate_frames
from vosengine.kernels.deform_conv import cases as deform_conv
from vosengine.kernels.finish_masks import cases as finish_masks
from vosengine.kernels.group_centres import cases as group_centres
from vosengine.kernels.match_proposals import cases as match_proposals
from vosengine.kernels.pool_regions import cases as pool_regions
from vosengine.kernels.prepare_frame import cases as prepare_frame
from vosengine.kernels.read_memory import cases as read_memory

Draw = Callable[[random.Random], Make]


def odd_case(name: str, seed: int) -> Case | None:
    """Return one call of the named op; None if there are no random shapes for it."""
    draw = DRAWS.get(name)
    if draw is None:
        return None
    return Case(f"odd shape {seed}", draw(random.Random(f"{name} {seed}")))


def _read_memory(dice: random.Random) -> Make:
    groups, positions = dice.randint(1, 4), dice.randint(1, 700)
    with_lengths = dice.random() < 0.5
    return read_memory._memory(
        dice.randint(1, 150),
        groups,
        positions,
        dice.choice((3, 16, 17, 64, 128)),
        dice.choice((5, 32, 63, 128, 250, 512)),
        sets=dice.choice((None, None, 1, 3)),
        query_per_group=dice.random() < 0.5,
        bias=dice.random() < 0.5,
        length=tuple(dice.randint(0, positions) for _ in range(groups)) if with_lengths else None,
    )


def _correlate_frames(dice: random.Random) -> Make:
    return correlate_frames._frames(
        dice.randint(1, 2),
        dice.choice((1, 7, 16, 33, 64, 130)),
        dice.randint(1, 35),
        dice.randint(1, 35),
        radius=dice.choice((0, 1, 5, 12)),
        temperature=dice.choice((-1.0, 1.0, 20.0)),
        outside=dice.choice(("zero", "exclude")),
    )


def _deform_conv(dice: random.Random) -> Make:
    offset_groups, per_group = dice.randint(1, 4), dice.choice((1, 3, 8, 16))
    kernel = dice.choice(((1, 1), (3, 3), (3, 3), (2, 5)))
    return deform_conv._call(
        dice.randint(1, 3),
        offset_groups * per_group,
        dice.randint(5, 40),
        dice.randint(5, 40),
        outputs=dice.choice((1, 7, 16, 64, 70)),
        kernel=kernel,
        offset_groups=offset_groups,
        bias=dice.random() < 0.5,
        mask=dice.random() < 0.5,
        stride=dice.choice((1, 1, 2)),
        padding=dice.randint(0, 2),
    )


def _align_object(dice: random.Random) -> Make:
    return align_object._maps(
        dice.randint(1, 4),
        dice.randint(1, 9),
        dice.randint(1, 200),
        dice.randint(1, 200),
        dice.choice((1, 5, 32, 100, 256)),
        score=dice.choice(("mean", "flat")),
        translate=dice.random() < 0.3,
    )


def _prepare_frame(dice: random.Random) -> Make:
    height, width = dice.randint(1, 130), dice.randint(1, 130)
    resized = (dice.randint(1, 130), dice.randint(1, 130))
    padding = tuple(dice.choice((0, 1, 5)) for _ in range(4))
    return prepare_frame._frame(
        height, width, dice.choice((None, resized)), padding, float_frame=dice.random() < 0.3
    )


def _finish_masks(dice: random.Random) -> Make:
    height, width = dice.randint(1, 40), dice.randint(1, 40)
    region = (dice.uniform(-1, 2), dice.uniform(-1, 2), height * 0.8, width * 0.9)
    return finish_masks._masks(
        dice.randint(1, 13),
        height,
        width,
        (dice.randint(1, 170), dice.randint(1, 170)),
        dice.choice((None, region)),
        probabilities=dice.random() < 0.5,
    )


def _pool_regions(dice: random.Random) -> Make:
    return pool_regions._regions(
        dice.randint(1, 9),
        dice.randint(8, 120),
        dice.randint(8, 120),
        levels=tuple((dice.randint(1, 70), dice.choice((2, 4, 8))) for _ in range(3)),
        batch=dice.randint(1, 3),
        planes=dice.choice((0, 1, 4)),
        size=dice.choice((1, 7, 14)),
        sampling=dice.randint(1, 3),
        aligned=dice.random() < 0.7,
    )


def _match_proposals(dice: random.Random) -> Make:
    make = dice.choice((match_proposals._matches, match_proposals._noise))
    return make(dice.randint(1, 12), dice.randint(1, 70))


def _group_centres(dice: random.Random) -> Make:
    return group_centres._noise(
        dice.randint(1, 3),
        dice.randint(1, 90),
        dice.randint(1, 90),
        window=dice.choice((1, 3, 7, 11)),
        limit=dice.choice((1, 20, 255)),
    )


DRAWS: dict[str, Draw] = {
    "prepare_frame": _prepare_frame,
    "correlate_frames": _correlate_frames,
    "read_memory": _read_memory,
    "deform_conv": _deform_conv,
    "pool_regions": _pool_regions,
    "group_centres": _group_centres,
    "align_object": _align_object,
    "match_proposals": _match_proposals,
    "finish_masks": _finish_masks,
}
